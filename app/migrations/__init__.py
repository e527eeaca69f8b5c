"""The migrations of the schema, and the functions that run them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import DateTime, event, text
from sqlalchemy.engine import Connection
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import create_engine
from app.settings import Settings

log = structlog.stdlib.get_logger("app.migrations")

# A migration may take longer than any request, and may wait for another process that migrates.
MIGRATION_SECONDS = 3600.0
ADVISORY_LOCK = 0x6661737461706900  # any number that nothing else in the database uses


def alembic_config() -> Config:
    """Return Alembic's configuration from pyproject.toml."""
    return Config(toml_file=Path(__file__).parents[2] / "pyproject.toml")


def create_migration_engine(settings: Settings) -> AsyncEngine:
    """Create an engine with a long statement timeout and, on SQLite, without foreign keys.

    SQLite cannot alter a column, so Alembic creates the table again and drops the old one. With foreign keys enabled,
    that would delete all rows that refer to it.
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
    """Migrate the database to a revision. If several processes do so at once, the others wait for the first.

    The schema of a later release is not changed, so that a release can be rolled back.
    """
    engine = create_migration_engine(settings)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_migrate, revision)
    finally:
        await engine.dispose()


def exists_on(dialect: str) -> Callable[..., bool]:
    """Return a filter for Alembic's `include_object`: an index with a method of PostgreSQL exists only there."""

    def include(item: Any, _name: str, kind: str, *_: object) -> bool:  # noqa: ANN401  any part of a schema
        return kind != "index" or dialect == "postgresql" or not item.dialect_options["postgresql"]["using"]

    return include


def render_item(kind: str, item: object, _: object) -> str | Literal[False]:
    """Render a datetime column in new migrations without its variant for SQLite."""
    return f"sa.DateTime(timezone={item.timezone})" if kind == "type" and isinstance(item, DateTime) else False


def lock(connection: Connection) -> None:
    """Prevent other processes from migrating until the transaction ends."""
    if connection.dialect.name == "postgresql":  # SQLite's transactions exclude each other
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})


def _migrate(connection: Connection, revision: str) -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    lock(connection)
    if revision != "head":
        command.downgrade(config, revision)
    elif (current := _current_revision(connection)) in (None, *_known_revisions()):
        command.upgrade(config, revision)
    else:
        log.warning("unknown revision, probably of a later release: the schema is not changed", revision=current)


async def is_migration_pending(engine: AsyncEngine) -> bool:
    """Return whether the schema is older than this code. It may be newer, while a later release is rolled out."""
    async with engine.connect() as connection:
        current = await connection.run_sync(_current_revision)
    return current in (None, *_known_revisions()[1:])


def _current_revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _known_revisions() -> list[str]:
    """Return the revisions of this code, newest first."""
    return [script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()]
