"""The migrations run up and down on both databases, and produce the schema of the models."""

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import structlog
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, Uuid, bindparam, delete, func, inspect, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.types import NullType

from app.database import Base, create_engine, utc_now
from app.errors import StartupError
from app.migrations import (
    alembic_config,
    create_migration_engine,
    include_object,
    is_migration_pending,
    lock_migrations,
    migrate,
    render_item,
)
from app.settings import Settings
from app.startup import prepare_database
from app.users.models import Login, User
from tests.conftest import ROOT, change, make_settings, wait_for_blocked_statement

TABLES = Base.metadata.tables
# Values for the rows that migrations are tested on: VALUES by column type, ROWS for columns that need other values.
VALUES: dict[type, object] = {
    bool: True,
    bytes: b"a",
    date: date(2026, 1, 1),
    datetime: datetime(2026, 1, 1, tzinfo=UTC),
    Decimal: Decimal(1),
    dict: {},
    float: 1.0,
    int: 1,
    list: [],
    object: {},  # JSON
    str: "a",
    UUID: UUID(int=1),
}
ROWS: dict[str, dict[str, object]] = {}
TIMEOUT = 600  # seconds per command, on a machine that runs many tests in parallel


@pytest.fixture
def database(database_url: str) -> Iterator[Settings]:
    """The settings of a migrated database. It is migrated again at the end, because tests share the PostgreSQL one."""
    database = make_settings(database_url=database_url)
    yield database
    asyncio.run(migrate(database))


async def table_names(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        return set(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))


async def test_migrations_run_up_down_and_up_again(database: Settings) -> None:
    engine = create_engine(database)
    assert await table_names(engine) == TABLES.keys() | {"alembic_version"}
    assert not await is_migration_pending(engine)

    await migrate(database, "base")
    assert await table_names(engine) == {"alembic_version"}
    assert await is_migration_pending(engine)

    await migrate(database)
    assert await table_names(engine) == TABLES.keys() | {"alembic_version"}
    assert not await is_migration_pending(engine)
    await engine.dispose()


async def add_user_of_release_3(engine: AsyncEngine, email: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO users (email, full_name, password_hash, is_active, is_superuser, security_stamp,"
                " created_at, updated_at) VALUES (:email, 'Ann', '', true, false, :stamp, :now, :now)"
            ).bindparams(
                bindparam("email", email),
                bindparam("now", utc_now(), Base.type_annotation_map[datetime]),
                bindparam("stamp", uuid4(), Uuid),
            )
        )


async def test_addresses_get_their_normal_form_unless_another_user_has_it(
    database: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    await migrate(database, "0003")
    engine = create_engine(database)
    before = ["e\u0301ve@example.com", "j\u030cohn@example.com", "\u01f0ohn@example.com"]
    for email in before:
        await add_user_of_release_3(engine, email)

    await migrate(database)
    async with engine.begin() as connection:
        after = list(await connection.scalars(select(User.email).order_by(User.id)))
        await connection.execute(delete(User))
    await engine.dispose()

    assert after == ["\u00e9ve@example.com", *before[1:]]
    assert "have the same email address" in caplog.text


async def test_addresses_from_before_the_migration_count_as_verified(database: Settings) -> None:
    """Otherwise REQUIRE_VERIFIED_EMAIL would lock out all users who registered before."""
    await migrate(database, "0004")
    engine = create_engine(database)
    await add_user_of_release_3(engine, "ann@example.com")

    await migrate(database)
    async with engine.begin() as connection:
        users = (await connection.execute(select(User.email, User.email_verified, User.pending_email))).all()
        await connection.execute(delete(User))
    await engine.dispose()

    assert users == [("ann@example.com", True, None)]


async def test_migrated_schema_matches_the_models(database: Settings) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "include_object": include_object(connection.dialect.name)}
        )
        return list(compare_metadata(context, Base.metadata))

    engine = create_engine(database)
    async with engine.connect() as connection:
        found = await connection.run_sync(differences)
    await engine.dispose()

    assert found == []


def fill_empty_tables(connection: Connection) -> None:
    """Insert a row into each empty table. If a table needs certain values, add them to ROWS."""
    reflected = MetaData()
    reflected.reflect(connection)
    for table in reflected.sorted_tables:
        if table.name == "alembic_version" or connection.scalar(select(func.count()).select_from(table)):
            continue
        row: dict[str, object] = {}
        for column in table.columns:
            if column.foreign_keys:
                row[column.name] = connection.scalar(select(next(iter(column.foreign_keys)).column))
            elif not isinstance(column.type, NullType):
                row[column.name] = VALUES[column.type.python_type]
        try:
            connection.execute(table.insert().values(row | ROWS.get(table.name, {})))
        except DBAPIError as error:
            error.add_note(f"If `{table.name}` needs other values, add them to ROWS in tests/test_migrations.py.")
            raise


def count_rows(connection: Connection) -> dict[str, int]:
    return {
        name: connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar_one()
        for name in inspect(connection).get_table_names()
    }


async def test_migrations_run_up_and_down_on_tables_with_rows(database: Settings) -> None:
    """Before each migration, every table created so far gets a row."""
    await migrate(database, "base")
    revisions = [script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()]
    engine = create_migration_engine(database)

    async def run(step: Callable[[Config, str], None], revision: str) -> dict[str, int]:
        def run_step(connection: Connection) -> dict[str, int]:
            config = alembic_config()
            config.attributes["connection"] = connection
            step(config, revision)
            rows = count_rows(connection)
            fill_empty_tables(connection)
            return rows

        async with engine.begin() as connection:
            return await connection.run_sync(run_step)

    filled: set[str] = set()
    for revision in reversed(revisions):
        rows = await run(command.upgrade, revision)
        assert {name: rows[name] for name in filled & rows.keys()} == dict.fromkeys(filled & rows.keys(), 1), revision
        filled = set(rows)
    for revision in [*revisions[1:], "base"]:
        rows = await run(command.downgrade, revision)
        assert all(rows[name] == 1 for name in rows.keys() & filled - {"alembic_version"}), revision
    await engine.dispose()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_sqlite_never_reuses_an_id(database: Settings) -> None:
    """A migration of an AUTOINCREMENT table must pass `sqlite_autoincrement` in `table_kwargs` of batch_alter_table."""
    engine = create_engine(database)
    async with engine.connect() as connection:
        result = await connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE sql LIKE '%AUTOINCREMENT%'")
        found = {name for (name,) in result}
    await engine.dispose()

    assert found == {name for name, table in TABLES.items() if table.dialect_options["sqlite"]["autoincrement"]}


async def test_constraints_have_the_names_from_the_models(database: Settings) -> None:
    def constraint_names(connection: Connection) -> set[str | None]:
        inspector = inspect(connection)
        return {
            constraint["name"]
            for table in TABLES
            for constraint in [
                inspector.get_pk_constraint(table),
                *inspector.get_unique_constraints(table),
                *inspector.get_check_constraints(table),
                *inspector.get_foreign_keys(table),
                *[index for index in inspector.get_indexes(table) if not index["unique"]],
            ]
        }

    engine = create_engine(database)
    async with engine.connect() as connection:
        found = await connection.run_sync(constraint_names)
    await engine.dispose()

    keys = {table.primary_key.name for table in TABLES.values()}
    named = {constraint.name for table in TABLES.values() for constraint in table.constraints}
    named |= {index.name for table in TABLES.values() for index in table.indexes}
    assert {"uq_users_email", "ck_users_email_lower_case"} <= named
    found.discard(None)  # SQLite's AUTOINCREMENT primary keys have no name
    assert found | keys | {"ix_users_search"} == named  # SQLite does not have ix_users_search


async def test_pending_migration_at_startup_is_reported_with_the_command(
    settings: Settings, database: Settings
) -> None:
    await migrate(database, "base")

    with pytest.raises(StartupError, match="python -m app migrate"):
        await prepare_database(settings)

    await migrate(database)
    await prepare_database(settings)


@pytest.mark.parametrize("migrates", [False, True])
async def test_schema_of_a_later_release_is_not_changed(
    settings: Settings, database: Settings, logs: list[structlog.typing.EventDict], *, migrates: bool
) -> None:
    engine = create_engine(database)
    async with engine.begin() as connection:
        newest = await connection.scalar(text("SELECT version_num FROM alembic_version"))
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    try:
        await prepare_database(change(settings, database_migrate=migrates))
    finally:
        async with engine.begin() as connection:
            stored = await connection.scalar(text("SELECT version_num FROM alembic_version"))
            await connection.execute(text("UPDATE alembic_version SET version_num = :newest"), {"newest": newest})
        await engine.dispose()

    assert stored == "9999"
    assert [entry["log_level"] for entry in logs if entry.get("revision") == "9999"] == ["warning"] * migrates


async def test_concurrent_processes_migrate_once(
    database: Settings, clean_environment: dict[str, str], tmp_path: Path
) -> None:
    await migrate(database, "base")
    environment = clean_environment | {"DATABASE_URL": database.database_url.get_secret_value()}
    command = [sys.executable, "-m", "app", "migrate"]

    processes = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)  # noqa: ASYNC220  they run concurrently
        for _ in range(5)
    ]
    outputs = [process.communicate(timeout=TIMEOUT)[1] for process in processes]

    assert [process.returncode for process in processes] == [0] * 5, outputs
    assert sum("app.migrations" in output for output in outputs) == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_migration_waits_for_another_longer_than_the_statement_timeout(
    database: Settings, database_url: str
) -> None:
    engine = create_engine(change(database, database_statement_timeout=60))
    async with engine.begin() as connection:
        await connection.run_sync(lock_migrations)  # take the lock that a migration takes
        other = asyncio.create_task(migrate(change(database, database_statement_timeout=0.1)))
        await wait_for_blocked_statement(database_url)
        await asyncio.sleep(0.5)  # longer than the other's statement timeout
        is_waiting = not other.done()
    await other
    await engine.dispose()

    assert is_waiting


@pytest.mark.parametrize("arguments", [["check"], ["current"]])
def test_alembic_command_line_works(
    database: Settings, clean_environment: dict[str, str], tmp_path: Path, arguments: list[str]
) -> None:
    environment = clean_environment | {"DATABASE_URL": database.database_url.get_secret_value()}
    command = [sys.executable, "-m", "alembic", "--config", str(ROOT / "pyproject.toml"), *arguments]

    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=TIMEOUT)


def test_datetime_column_is_rendered_without_its_sqlite_variant() -> None:
    assert render_item("type", Login.__table__.c.created_at.type, None) == "sa.DateTime(timezone=True)"
    assert render_item("type", Login.__table__.c.user_id.type, None) is False


def test_migration_can_be_generated_from_changed_models(clean_environment: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "app", tmp_path / "app")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    models = tmp_path / "app/users/models.py"
    columns = (
        "    added_text: Mapped[str | None] = mapped_column(String(50))\n    added_datetime: Mapped[datetime | None]\n"
    )
    with_longer_name = models.read_text().replace("mapped_column(String(100))", "mapped_column(String(200))")
    before = "    email_verified: Mapped[bool] = mapped_column(default=False)\n"
    models.write_text(with_longer_name.replace(before, before + columns))
    environment = clean_environment | {"DATABASE_URL": "sqlite:///app.db", "PYTHONPATH": str(tmp_path)}

    generate = ("app migrate", "alembic revision --autogenerate -m added_text")
    check = (
        "app migrate",
        "alembic check",
        "ruff check --no-cache app/migrations",
        "ruff format --no-cache --check app/migrations",
    )

    def run(*commands: str) -> None:
        for line in commands:
            subprocess.run(
                [sys.executable, "-m", *line.split()], cwd=tmp_path, env=environment, check=True, timeout=TIMEOUT
            )

    run(*generate)
    with closing(sqlite3.connect(tmp_path / "app.db", isolation_level=None)) as database:
        database.execute(
            "INSERT INTO users (id, email, full_name, password_hash, is_active, is_superuser, created_at, updated_at)"
            " VALUES (1, 'a@x.org', 'Ann', '', 1, 0, '2026-01-01', '2026-01-01')"
        )
        database.execute(
            "INSERT INTO refresh_tokens (family, user_id, secret_hash, expires_at, created_at)"
            " VALUES ('f', 1, '', '2026-01-01', '2026-01-01')"
        )
    run(*check)

    (migration,) = (tmp_path / "app/migrations/versions").glob("*_added_text.py")
    assert 'batch_op.add_column(sa.Column("added_text"' in migration.read_text()
    assert 'sa.Column("added_datetime", sa.DateTime(timezone=True)' in migration.read_text()
    assert 'batch_op.alter_column(\n            "full_name"' in migration.read_text()
    with closing(sqlite3.connect(tmp_path / "app.db")) as database:
        assert database.execute("SELECT id, added_text FROM users").fetchall() == [(1, None)]
        assert database.execute("SELECT family FROM refresh_tokens").fetchall() == [
            ("f",)
        ]  # not cascaded when the old table of users was dropped
