"""Alembic's entry point. It uses the connection from `migrate`, or opens one for Alembic's command line."""

import asyncio

import structlog
from alembic import context
from alembic.runtime.migration import MigrationInfo
from alembic.util import CommandError
from sqlalchemy.engine import Connection

import app.api  # noqa: F401  importing the features registers their models
from app.database import Base
from app.logging import configure_logging
from app.migrations import create_migration_engine, include_object, lock_migrations, render_item, rewriter
from app.settings import load_settings
from app.startup import create_sqlite_file

log = structlog.stdlib.get_logger("app.migrations")


def report(*, step: MigrationInfo, **_: object) -> None:
    """Log a migration on a single line. Alembic itself would log several."""
    context.config.attributes["revision"] = step.up_revision_id
    log.info("migration", direction="up" if step.is_upgrade else "down", revision=step.up_revision_id)


def run(connection: Connection) -> None:
    """Run the migrations in one transaction. The connection must hold the migration lock."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        transactional_ddl=True,
        render_as_batch=True,  # otherwise SQLite cannot alter columns
        render_item=render_item,
        process_revision_directives=rewriter,
        include_object=include_object(connection.dialect.name),
        on_version_apply=report,  # type: ignore[arg-type]  # Alembic passes keyword arguments
    )
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_run() -> None:
    """Connect to the database and run Alembic's command, for example `downgrade` or `revision --autogenerate`."""
    settings = load_settings()
    configure_logging(settings)
    if settings.is_sqlite:
        create_sqlite_file(settings)
    engine = create_migration_engine(settings)
    async with engine.begin() as connection:
        await connection.run_sync(lock_migrations)
        await connection.run_sync(run)
    await engine.dispose()


if connection := context.config.attributes.get("connection"):
    run(connection)
elif context.is_offline_mode():
    raise CommandError("--sql cannot be used, because some migrations read rows of the database")
else:
    asyncio.run(connect_and_run())
