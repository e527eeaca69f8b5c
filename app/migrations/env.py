"""What Alembic runs: on the connection that `migrate` hands over or, from its own command line, on one of its own."""

import asyncio

import structlog
from alembic import context
from alembic.runtime.migration import MigrationInfo
from sqlalchemy.engine import Connection

import app.api  # noqa: F401  the features, whose models register themselves when they are imported
from app.database import Base
from app.lifespan import open_sqlite
from app.migrations import create_migration_engine, exists_on, lock, render_item
from app.settings import load_settings

log = structlog.stdlib.get_logger("app.migrations")


def report(*, step: MigrationInfo, **_: object) -> None:
    """Says what is done, in place of Alembic, which says a good deal more."""
    log.info("migration", direction="up" if step.is_upgrade else "down", revision=step.up_revision_id)


def run(connection: Connection) -> None:
    """Runs what was asked for in one transaction, of which the connection has the lock."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        transactional_ddl=True,
        render_as_batch=True,  # else what alters a column runs on PostgreSQL alone
        render_item=render_item,
        include_object=exists_on(connection.dialect.name),
        on_version_apply=report,  # type: ignore[arg-type]  # it is called by keyword
    )
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_run() -> None:
    """Serves `alembic revision --autogenerate` and its kin."""
    settings = load_settings().database
    if settings.is_sqlite:
        open_sqlite(settings)
    engine = create_migration_engine(settings)
    async with engine.begin() as connection:
        await connection.run_sync(lock)
        await connection.run_sync(run)
    await engine.dispose()


if connection := context.config.attributes.get("connection"):
    run(connection)
else:
    asyncio.run(connect_and_run())
