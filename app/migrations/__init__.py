"""The schema's history, and how to bring a database up to date."""

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
from app.settings import DatabaseSettings

log = structlog.stdlib.get_logger("app.migrations")

# A migration may take longer than any request, and may wait for another process that runs it.
MIGRATION_SECONDS = 3600.0
ADVISORY_LOCK = 0x6661737461706900  # any number, as long as nothing else in the database uses it


def alembic_config() -> Config:
    """Alembic's configuration, which stands in pyproject.toml."""
    return Config(toml_file=Path(__file__).parents[2] / "pyproject.toml")


def create_migration_engine(settings: DatabaseSettings) -> AsyncEngine:
    """Creates an engine that has time, and on SQLite leaves foreign keys alone.

    SQLite cannot alter a column: Alembic makes the table anew, and drops the old one. With it, all rows that refer to
    its rows would go.
    """
    engine = create_engine(settings.model_copy(update={"statement_timeout": MIGRATION_SECONDS}))
    if settings.is_sqlite:
        event.listen(engine.sync_engine, "connect", _leave_foreign_keys_alone)
    return engine


def _leave_foreign_keys_alone(connection: DBAPIConnection, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = OFF")
    cursor.close()


async def migrate(settings: DatabaseSettings, revision: str = "head") -> None:
    """Brings the database to a revision; processes that do so at once wait for the first, and find it done.

    A schema of a later release is left as it is: whoever goes back to this one wants to serve.
    """
    engine = create_migration_engine(settings)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_run, revision)
    finally:
        await engine.dispose()


def exists_on(dialect: str) -> Callable[..., bool]:
    """What of the models a kind of database has, for Alembic's `include_object`.

    An index by one of PostgreSQL's own methods exists nowhere else.
    """

    def include(item: Any, _name: str, kind: str, *_: object) -> bool:  # noqa: ANN401  any part of a schema
        return kind != "index" or dialect == "postgresql" or not item.dialect_options["postgresql"]["using"]

    return include


def render_item(kind: str, item: object, _: object) -> str | Literal[False]:
    """Writes a moment's type into new migrations without its variant for SQLite, which is the models' own business."""
    return f"sa.DateTime(timezone={item.timezone})" if kind == "type" and isinstance(item, DateTime) else False


def lock(connection: Connection) -> None:
    """Keeps other processes from migrating until the transaction ends."""
    if connection.dialect.name == "postgresql":  # SQLite's transactions exclude each other as it is
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})


def _run(connection: Connection, revision: str) -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    lock(connection)
    if revision != "head":
        command.downgrade(config, revision)
    elif (current := _current_revision(connection)) in (None, *_known_revisions()):
        command.upgrade(config, revision)
    else:
        log.warning("the schema's revision is not known here, as a later release's is not: it stays", revision=current)


async def is_migration_pending(engine: AsyncEngine) -> bool:
    """Whether the schema is older than this code. A newer one, of a release that is being rolled out, is fine."""
    async with engine.connect() as connection:
        current = await connection.run_sync(_current_revision)
    return current in (None, *_known_revisions()[1:])


def _current_revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _known_revisions() -> list[str]:
    """All of this code's, newest first."""
    return [script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()]
