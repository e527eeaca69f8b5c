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
from itertools import pairwise
from pathlib import Path
from typing import TypeVar
from uuid import UUID, uuid4

import pytest
import structlog
from alembic import command
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Integer, MetaData, Table, Uuid, bindparam, delete, func, inspect, select, text
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
    rewriter,
)
from app.settings import Settings
from app.startup import prepare_database
from app.users.models import Login, User
from tests.conftest import ROOT, change, make_settings, wait_for_blocked_statement

TABLES = Base.metadata.tables
# Migrations are tested on rows with these values. VALUES contains a value for each column type. ROWS contains, for each
# table, the values of columns that need another one.
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
Seen = TypeVar("Seen")
TIMEOUT = 600  # seconds per command, on a machine that runs many tests in parallel


@pytest.fixture
def database(database_url: str) -> Iterator[Settings]:
    """Settings with a migrated database.

    The test may undo migrations. Afterwards, they are applied again, because tests share one PostgreSQL database.
    """
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
    """Otherwise, REQUIRE_VERIFIED_EMAIL would lock out all users who registered before the migration."""
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
    """Insert a row into each empty table. If a table requires certain values, add them to ROWS."""
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


def revisions_newest_first() -> list[str]:
    return [script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()]


async def run_step(
    engine: AsyncEngine, step: Callable[[Config, str], None], revision: str, look: Callable[[Connection], Seen]
) -> Seen:
    """Migrate up or down to a revision, then call `look` on the same connection and return its result."""

    def run(connection: Connection) -> Seen:
        config = alembic_config()
        config.attributes["connection"] = connection
        step(config, revision)
        return look(connection)

    async with engine.begin() as connection:
        return await connection.run_sync(run)


async def test_migrations_run_up_and_down_on_tables_with_rows(database: Settings) -> None:
    """Before each migration, the test inserts a row into every table that exists."""
    await migrate(database, "base")
    revisions = revisions_newest_first()
    engine = create_migration_engine(database)

    def count_and_fill(connection: Connection) -> dict[str, int]:
        rows = count_rows(connection)
        fill_empty_tables(connection)
        return rows

    filled: set[str] = set()
    for revision in reversed(revisions):
        rows = await run_step(engine, command.upgrade, revision, count_and_fill)
        assert {name: rows[name] for name in filled & rows.keys()} == dict.fromkeys(filled & rows.keys(), 1), revision
        filled = set(rows)
    for revision in [*revisions[1:], "base"]:
        rows = await run_step(engine, command.downgrade, revision, count_and_fill)
        assert all(rows[name] == 1 for name in rows.keys() & filled - {"alembic_version"}), revision
    await engine.dispose()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_sqlite_never_reuses_an_id(database: Settings) -> None:
    """Every table keeps AUTOINCREMENT, even after a downgrade.

    Alembic's batch operations recreate a table and omit AUTOINCREMENT by default.
    """
    solution = (
        "{} loses AUTOINCREMENT. Write op.add_column and op.drop_column. For other changes, write "
        'op.batch_alter_table(…, table_kwargs={{"sqlite_autoincrement": True}}): ids go on after the highest left.'
    )

    def tables_with_autoincrement(connection: Connection) -> set[str]:
        found = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE sql LIKE '%AUTOINCREMENT%'")
        return set(found.scalars())

    await migrate(database, "base")
    revisions = revisions_newest_first()
    engine = create_migration_engine(database)
    tables: dict[str, set[str]] = {}
    for revision in reversed(revisions):
        tables[revision] = await run_step(engine, command.upgrade, revision, tables_with_autoincrement)
    for newer, revision in pairwise(revisions):
        found = await run_step(engine, command.downgrade, revision, tables_with_autoincrement)
        assert found == tables[revision], solution.format(f"The downgrade of migration {newer}")
    await engine.dispose()

    expected = {name for name, table in TABLES.items() if table.dialect_options["sqlite"]["autoincrement"]}
    assert tables[revisions[0]] == expected, solution.format("An upgrade")


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


@pytest.mark.parametrize(
    ("change_schema", "undo", "missing"),
    [
        ("users RENAME full_name TO name", "users RENAME name TO full_name", ["users.full_name"]),
        (
            "refresh_tokens RENAME TO logins",
            "logins RENAME TO refresh_tokens",
            [f"refresh_tokens.{column.name}" for column in Base.metadata.tables["refresh_tokens"].columns],
        ),
    ],
    ids=["column", "table"],
)
async def test_missing_columns_of_an_unknown_revision_are_logged(
    database: Settings, logs: list[structlog.typing.EventDict], change_schema: str, undo: str, missing: list[str]
) -> None:
    """A revision is unknown if, for example, its migration was replaced by another one after it had run."""
    engine = create_engine(database)
    async with engine.begin() as connection:
        newest = await connection.scalar(text("SELECT version_num FROM alembic_version"))
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        await connection.execute(text(f"ALTER TABLE {change_schema}"))

    try:
        await migrate(database)
    finally:
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = :newest"), {"newest": newest})
            await connection.execute(text(f"ALTER TABLE {undo}"))
        await engine.dispose()

    assert [entry["missing_columns"] for entry in logs if entry.get("revision") == "9999"] == [missing]


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
        await connection.run_sync(lock_migrations)  # hold the lock that a migration takes
        other = asyncio.create_task(migrate(change(database, database_statement_timeout=0.1)))
        await wait_for_blocked_statement(database_url)
        await asyncio.sleep(0.5)  # longer than the waiting migration's statement timeout
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


def test_sql_mode_is_rejected(clean_environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "alembic", "--config", str(ROOT / "pyproject.toml"), "upgrade", "head", "--sql"]

    result = subprocess.run(
        command, cwd=tmp_path, env=clean_environment, capture_output=True, text=True, check=False, timeout=TIMEOUT
    )

    assert result.returncode != 0
    assert "--sql cannot be used" in result.stderr + result.stdout
    assert "Traceback" not in result.stderr


def test_datetime_column_is_rendered_without_its_sqlite_variant() -> None:
    assert render_item("type", Login.__table__.c.created_at.type, None) == "sa.DateTime(timezone=True)"
    assert render_item("type", Login.__table__.c.user_id.type, None) is False


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_new_migration_uses_no_batch_for_a_column_of_a_table_with_autoincrement(database: Settings) -> None:
    models = MetaData()
    for table in TABLES.values():
        table.to_metadata(models)
    for name in ("users", "refresh_tokens"):
        models.tables[name].append_column(Column("added", Integer))

    def generate(connection: Connection) -> str:
        context = MigrationContext.configure(connection, opts={"include_object": include_object("sqlite")})
        script = produce_migrations(context, models)
        rewriter(context, (), [script])
        assert script.upgrade_ops
        return render_python_code(script.upgrade_ops, render_as_batch=True)

    engine = create_engine(database)
    async with engine.connect() as connection:
        migration = await connection.run_sync(generate)
    await engine.dispose()

    assert "op.add_column('users', sa.Column('added'" in migration
    assert "with op.batch_alter_table('refresh_tokens'" in migration


async def test_new_migration_makes_a_removed_column_nullable(database: Settings) -> None:
    """The previous release still uses the column during a rollout, and this release inserts rows without it."""
    models = MetaData()
    for table, removed in (("mails", "recipient"), ("refresh_tokens", "user_agent"), ("account_tokens", "purpose")):
        columns = [column for column in TABLES[table].columns if column.name != removed]
        Table(table, models, *(Column(each.name, each.type, primary_key=each.primary_key) for each in columns))

    def generate(connection: Connection) -> tuple[str, str]:
        options = {"include_object": include_object(connection.dialect.name)}
        script = produce_migrations(MigrationContext.configure(connection, opts=options), models)
        assert script.upgrade_ops
        assert script.downgrade_ops
        return render_python_code(script.upgrade_ops), render_python_code(script.downgrade_ops)

    engine = create_engine(database)
    async with engine.connect() as connection:
        upgrade, downgrade = await connection.run_sync(generate)
    await engine.dispose()

    for migration, is_nullable in ((upgrade, True), (downgrade, False)):
        arguments = migration.partition("op.alter_column('mails', 'recipient',")[2].partition(")\n")[0].split()
        assert f"nullable={is_nullable}" in arguments
    assert "op.drop_column" not in upgrade
    assert "user_agent" not in upgrade  # it is nullable
    assert "purpose" not in upgrade  # it is part of the primary key


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
        ]  # dropping the old users table did not delete it
