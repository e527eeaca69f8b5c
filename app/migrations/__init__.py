"""Schema migrations, and the functions that run them."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import structlog
from alembic import command
from alembic.autogenerate import Rewriter, comparators
from alembic.autogenerate.api import AutogenContext
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations.ops import (
    AddColumnOp,
    AlterColumnOp,
    CreateIndexOp,
    DropColumnOp,
    DropIndexOp,
    MigrateOperation,
    ModifyTableOps,
)
from alembic.script import ScriptDirectory
from sqlalchemy import DateTime, Table, event, inspect, text
from sqlalchemy.engine import Connection
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database import Base, create_engine
from app.migrations.web_role import grant_to_web_role
from app.settings import Settings
from app.urls import split_credentials

log = structlog.stdlib.get_logger("app.migrations")

# Statement timeout for migrations, in seconds. Migrations take longer than requests, and may have to wait for another
# process to finish migrating.
MIGRATION_SECONDS = 3600.0
# Maximum time in seconds that a statement in a migration waits for each lock.
LOCK_SECONDS = 4
# Maximum number of migration attempts. A migration is retried if a statement cannot acquire a lock in time.
LOCK_ATTEMPTS = 5
LOCK_NOT_AVAILABLE = "55P03"
ADVISORY_LOCK = 0x6661737461706900  # an arbitrary number, unique in the database


_LOCK_HOLDERS = text("""
    SELECT DISTINCT activity.pid, activity.usename, activity.application_name, activity.xact_start
    FROM pg_stat_activity AS activity
    JOIN pg_locks AS locks ON locks.pid = activity.pid AND locks.granted AND locks.database = (
        SELECT oid FROM pg_database WHERE datname = current_database()
    )
    JOIN pg_class AS tables ON tables.oid = locks.relation AND tables.relkind IN ('r', 'p')
    WHERE tables.relnamespace = current_schema()::regnamespace
        AND activity.pid <> pg_backend_pid() AND activity.xact_start < now() - make_interval(secs => :seconds)
    ORDER BY activity.xact_start
""")


class MigrationFailed(Exception):
    """A migration failed and was rolled back. The message is a one-line explanation for the operator."""


class LockTimeout(Exception):
    """A statement in a migration waited too long for a lock."""

    def __init__(self, statement: str) -> None:
        super().__init__(statement)
        self.statement = statement


def alembic_config() -> Config:
    """Return Alembic's configuration from pyproject.toml."""
    return Config(toml_file=Path(__file__).parents[2] / "pyproject.toml")


def create_migration_engine(settings: Settings) -> AsyncEngine:
    """Create an engine with a long statement timeout and, on SQLite, with foreign keys disabled.

    SQLite cannot alter a column, so Alembic creates a new table and drops the old one. With foreign keys enabled,
    dropping the old table would delete all rows that refer to it.
    """
    engine = create_engine(settings.model_copy(update={"database_statement_timeout": MIGRATION_SECONDS}))
    if settings.is_sqlite:
        event.listen(engine.sync_engine, "connect", _disable_foreign_keys)
    return engine


def _disable_foreign_keys(connection: DBAPIConnection, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = OFF")
    cursor.close()


async def migrate(settings: Settings, revision: str = "head") -> None:
    """Migrate the database to a revision. If another process is migrating it, wait until that process has finished.

    If a later release has already migrated the database, leave the schema unchanged, so that a rollback to this release
    is possible. If WEB_DATABASE_URL is set, a migration to `head` also sets up the role in that URL: it creates the
    role if necessary, and sets the role's password and privileges.

    Raises:
        MigrationFailed: A statement failed, a lock was not available, or the role in WEB_DATABASE_URL could not be
            set up. Nothing was changed.
    """
    engine = create_migration_engine(settings)
    try:
        for attempt in range(1, LOCK_ATTEMPTS + 1):
            if attempt > 1:
                await asyncio.sleep(random.uniform(1, 3))  # noqa: S311  jitter
            try:
                async with engine.begin() as connection:
                    await connection.run_sync(_migrate, revision)
                    if settings.web_database_url and revision == "head":
                        await _grant_to_web_role(connection, settings.web_database_url.get_secret_value())
            except LockTimeout as error:
                holders = await _find_lock_holders(engine)
                log.warning(
                    "a migration could not get a lock in time",
                    attempt=attempt,
                    held_by=holders,
                    statement=error.statement,
                )
            else:
                return
        raise MigrationFailed(
            f"A migration could not lock a table within {LOCK_SECONDS} s, {LOCK_ATTEMPTS} times. Nothing was changed. "
            f"The lock is held by {holders or 'nobody any more'}"
        )
    finally:
        await engine.dispose()


async def _grant_to_web_role(connection: AsyncConnection, url: str) -> None:
    try:
        await grant_to_web_role(connection, *split_credentials(url))
    except DBAPIError as error:  # not chained, because its statement contains the password
        raise MigrationFailed(f"The role of WEB_DATABASE_URL cannot be set up: {error.orig}") from None


async def _find_lock_holders(engine: AsyncEngine) -> str:
    """Describe the sessions that hold locks on the schema's tables and have a transaction older than LOCK_SECONDS."""
    async with engine.connect() as connection:
        rows = await connection.execute(_LOCK_HOLDERS, {"seconds": LOCK_SECONDS})
        return ", ".join(
            f"pid {pid} ({application or user}) since {since:%H:%M:%S} UTC" for pid, user, application, since in rows
        )


def include_object(dialect: str) -> Callable[..., bool]:
    """Return a function for Alembic's `include_object` option, which selects the objects to compare with the models.

    Indexes that use a PostgreSQL-specific access method, for example GIN, are ignored on SQLite. Columns that are
    missing from the models are not dropped, because the previous release may still use them during a rollout. A later
    migration drops them.
    """

    def include(item: Any, _name: str, kind: str, is_reflected: bool, model: Any) -> bool:  # noqa: ANN401  any object
        if kind == "column":
            return not is_reflected or model is not None
        return kind != "index" or dialect == "postgresql" or not item.dialect_options["postgresql"]["using"]

    return include


def render_item(kind: str, item: object, _: object) -> str | Literal[False]:
    """Leave the SQLite variant of datetime columns out of the migrations that Alembic generates."""
    return f"sa.DateTime(timezone={item.timezone})" if kind == "type" and isinstance(item, DateTime) else False


@comparators.dispatch_for("table")
def _make_removed_columns_nullable(  # noqa: PLR0913, PLR0917  Alembic's signature
    context: AutogenContext,
    operations: ModifyTableOps,
    schema: str | None,
    name: str,
    found: Table | None,
    model: Table | None,
) -> None:
    """If the models no longer define a column, make it nullable, so that rows can be inserted without it.

    Columns with a default on the server and columns of the primary key are not changed. Neither are, on SQLite, columns
    of tables with AUTOINCREMENT, because altering a column recreates the table, which would then lack AUTOINCREMENT.
    """
    if found is None or model is None:  # the migration creates or drops the table
        return
    if context.dialect and context.dialect.name == "sqlite" and model.dialect_options["sqlite"]["autoincrement"]:
        return
    for column in found.columns:
        is_required = not column.nullable and not column.primary_key and column.server_default is None
        if is_required and column.name not in model.columns:
            change = AlterColumnOp(
                name,
                column.name,
                schema=schema,
                existing_type=column.type,
                existing_nullable=False,
                modify_nullable=True,
            )
            operations.ops.append(change)


rewriter = Rewriter()


@rewriter.rewrites(ModifyTableOps)
def _keep_autoincrement(_context: object, _revision: object, directive: ModifyTableOps) -> list[MigrateOperation]:
    """Return operations that alter the table in place if it uses AUTOINCREMENT and SQLite supports all of them.

    `batch_alter_table` would recreate the table, which would then lack AUTOINCREMENT.
    """
    in_place = (AddColumnOp, DropColumnOp, CreateIndexOp, DropIndexOp)
    table = Base.metadata.tables.get(directive.table_name)  # None if the migration drops the table
    has_autoincrement = table is not None and table.dialect_options["sqlite"]["autoincrement"]
    if has_autoincrement and all(isinstance(each, in_place) for each in directive.ops):
        return list(directive.ops)
    return [directive]


def lock_migrations(connection: Connection) -> None:
    """Take the migration lock until the transaction ends, and set a timeout for all later locks.

    The migration lock prevents other processes from migrating. Without the timeout, a migration that waits for a lock
    on a table would block all later queries on that table.
    """
    if connection.dialect.name == "postgresql":  # SQLite's transactions exclude each other
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")


def _migrate(connection: Connection, revision: str) -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    lock_migrations(connection)
    if revision != "head":
        command.downgrade(config, revision)
        return
    current, known = _current_revision(connection), _known_revisions()
    if current not in (None, *known):
        # Either a later release has migrated the database, or a migration was deleted after it had run. In either
        # case, the database may lack columns that the models define, so log the missing columns.
        log.warning(
            "unknown revision, probably of a later release: the schema is not changed",
            revision=current,
            missing_columns=_list_missing_columns(connection),
        )
        return
    config.attributes["revision"] = current
    try:
        command.upgrade(config, revision)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == LOCK_NOT_AVAILABLE:
            raise LockTimeout(_shorten(error.statement)) from error
        applied = config.attributes["revision"]  # the last applied revision, set by env.py
        failed = known[known.index(applied) - 1] if applied else known[-1]
        message = f"Migration {failed} failed at `{_shorten(error.statement)}`: {error.orig}. Nothing was changed"
        raise MigrationFailed(message) from error


def _list_missing_columns(connection: Connection) -> list[str]:
    """Return the columns that the models define but the database lacks."""
    inspector = inspect(connection)
    missing = []
    for table in Base.metadata.sorted_tables:
        found = inspector.get_columns(table.name, table.schema) if inspector.has_table(table.name, table.schema) else []
        names = {column["name"] for column in found}
        missing += [f"{table.name}.{column.name}" for column in table.columns if column.name not in names]
    return missing


def _shorten(statement: str | None) -> str:
    return " ".join((statement or "").split())[:200]


async def is_migration_pending(engine: AsyncEngine) -> bool:
    """Return whether the schema is older than this code.

    For a newer schema, the result is False, because a later release may have migrated the database during a rollout.
    """
    async with engine.connect() as connection:
        current = await connection.run_sync(_current_revision)
    return current in (None, *_known_revisions()[1:])


def _current_revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _known_revisions() -> list[str]:
    """Return the revision ids of this release's migrations, newest first."""
    return [script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()]
