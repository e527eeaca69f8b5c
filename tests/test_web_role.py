"""`python -m app migrate` creates the database role that the service uses."""

from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import make_url

from app.migrations import MigrationFailed, migrate
from app.settings import Settings
from tests.conftest import change, execute, make_settings

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

CREATE_LARGE_OBJECT = ["SELECT lo_creat(-1)", "SELECT lo_create(0)", "SELECT lo_from_bytea(0, 'x')"]
FORBIDDEN = [
    "DROP TABLE users",
    "CREATE TABLE x ()",
    "DELETE FROM alembic_version",
    "TRUNCATE mails",
    "CREATE TEMPORARY TABLE x ()",
    "SELECT lo_import('/etc/passwd')",
    *CREATE_LARGE_OBJECT,
]


@pytest.fixture
async def role(database_url: str) -> AsyncIterator[str]:
    """The name of a role that does not exist yet.

    It contains the name of this process's database, because test processes share the server and its roles.
    """
    role = f"web of '{make_url(database_url).database}\""
    yield role
    owner = await asyncpg.connect(database_url)
    quoted = '"' + role.replace('"', '""') + '"'
    await owner.execute(f"DROP OWNED BY {quoted}; DROP ROLE {quoted}")
    await owner.close()


@pytest.fixture
async def owner_url(database_url: str, role: str) -> AsyncIterator[str]:  # noqa: ARG001  it is dropped after the database
    """The URL of an empty database whose owner is not a superuser but may create roles, as in managed databases."""
    owner = f"owner_{uuid4().hex}"
    await execute(database_url, f"CREATE ROLE {owner} LOGIN CREATEROLE PASSWORD 'password'")
    await execute(database_url, f"CREATE DATABASE {owner} OWNER {owner}")
    yield url_of(database_url, owner, "password", database=owner)
    await execute(database_url, f"DROP DATABASE {owner} WITH (FORCE)")
    await execute(database_url, f"DROP ROLE {owner}")


def url_of(database_url: str, role: str, password: str, database: str | None = None) -> str:
    url = make_url(database_url).set(username=role, password=password, database=database)
    return url.render_as_string(hide_password=False)


async def forbidden_statements(url: str) -> list[str]:
    """Return which of the statements in FORBIDDEN the role may not execute."""
    connection = await asyncpg.connect(url)
    forbidden = []
    for statement in FORBIDDEN:
        try:
            await connection.execute(statement)
        except asyncpg.InsufficientPrivilegeError:
            forbidden.append(statement)
    await connection.close()
    return forbidden


@pytest.mark.parametrize("password", ["it's a %s $1 :password"])
async def test_role_can_read_and_write_rows_but_change_no_table(
    settings: Settings, database_url: str, role: str, password: str
) -> None:
    for each in ("the first password", password):  # the second run changes the password
        await migrate(change(settings, web_database_url=url_of(database_url, role, each)))

    web = await asyncpg.connect(url_of(database_url, role, password))
    assert await web.fetchval("SELECT count(*) FROM users") == 0
    assert await web.execute("DELETE FROM refresh_tokens") == "DELETE 0"
    await web.execute("INSERT INTO mails VALUES (gen_random_uuid(), 'test', 'a@example.com', '{}', now(), now(), 0)")
    assert await web.fetchval("SELECT version_num FROM alembic_version")
    await web.close()
    assert await forbidden_statements(url_of(database_url, role, password)) == FORBIDDEN


async def test_owner_that_is_not_a_superuser_revokes_what_it_owns(
    settings: Settings, database_url: str, owner_url: str, role: str
) -> None:
    web_url = url_of(owner_url, role, "password")
    database = make_url(database_url).set(database=make_url(owner_url).database)
    managed = change(settings, database_url=owner_url, web_database_url=web_url)

    await migrate(managed)
    forbidden = await forbidden_statements(web_url)
    revoke = "REVOKE EXECUTE ON FUNCTION lo_creat, lo_create, lo_from_bytea FROM PUBLIC"
    await execute(database.render_as_string(hide_password=False), revoke)  # as a superuser
    await migrate(managed)

    assert forbidden == [statement for statement in FORBIDDEN if statement not in CREATE_LARGE_OBJECT]
    assert await forbidden_statements(web_url) == FORBIDDEN


async def test_role_that_cannot_be_created_fails_without_telling_the_password(
    settings: Settings, database_url: str, role: str
) -> None:
    web_url = url_of(database_url, role, "hunter2")
    await migrate(change(settings, web_database_url=web_url))

    with pytest.raises(MigrationFailed) as caught:
        await migrate(change(settings, database_url=web_url, web_database_url=url_of(database_url, "other", "hunter2")))

    assert str(caught.value).startswith("The role of WEB_DATABASE_URL cannot be set up: ")
    assert "permission denied" in str(caught.value)
    assert "hunter2" not in repr(caught.value.__cause__) + str(caught.value)


@pytest.mark.parametrize("url", ["postgresql://db/app", "postgresql://web@db/app", "sqlite:///app.db"])
def test_url_without_a_role_and_its_password_is_refused(database_url: str, url: str) -> None:  # noqa: ARG001
    with pytest.raises(ValueError, match="must contain a role and its password"):
        make_settings(web_database_url=url)
