"""`python -m app migrate` creates the database role that the service uses."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy import make_url

from app.migrations import MigrationFailed, migrate
from app.settings import Settings
from tests.conftest import change, make_settings

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
async def role(database_url: str) -> AsyncIterator[str]:
    """The name of a role that does not exist yet.

    The name of this process's database makes it unique, because test processes share the server and its roles.
    """
    role = f"web of '{make_url(database_url).database}\""
    yield role
    owner = await asyncpg.connect(database_url)
    quoted = '"' + role.replace('"', '""') + '"'
    await owner.execute(f"DROP OWNED BY {quoted}; DROP ROLE {quoted}")
    await owner.close()


def url_of(database_url: str, role: str, password: str) -> str:
    return make_url(database_url).set(username=role, password=password).render_as_string(hide_password=False)


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
    for statement in ("DROP TABLE users", "CREATE TABLE x ()", "DELETE FROM alembic_version", "TRUNCATE mails"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await web.execute(statement)
    await web.close()


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
