"""Migrations that fail or wait for a lock change nothing, block nobody for long, and say why."""

import asyncio
import re
import time

import asyncpg
import pytest
import structlog

from app import migrations
from app.errors import StartupError
from app.migrations import MigrationFailed, migrate
from app.settings import Settings
from app.startup import prepare_database
from tests.conftest import change, wait_for_blocked_statement

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

USER = """
    INSERT INTO users
        (email, full_name, password_hash, is_active, is_superuser, credentials_version, created_at, updated_at)
    VALUES ('ann@example.com', 'Ann', '', true, false, 1, now(), now())
"""


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "LOCK_SECONDS", 0.5)
    monkeypatch.setattr(migrations, "LOCK_ATTEMPTS", 2)
    monkeypatch.setattr("random.uniform", lambda *_: 0.1)


@pytest.mark.usefixtures("short_waits")
async def test_migration_gives_up_on_locked_table_and_names_the_holder(
    settings: Settings, database_url: str, logs: list[structlog.typing.EventDict]
) -> None:
    await migrate(settings, "0001")
    holder = await asyncpg.connect(database_url, server_settings={"application_name": "report"})
    async with holder.transaction():
        await holder.execute("LOCK TABLE users IN ROW EXCLUSIVE MODE")
        await asyncio.sleep(0.6)  # longer than a migration waits
        with pytest.raises(MigrationFailed) as caught:
            await migrate(settings)
    pid = holder.get_server_pid()
    await holder.close()
    await migrate(settings)

    assert re.fullmatch(
        rf"A migration could not lock a table within 0.5 s, 2 times. Nothing was changed. "
        rf"The lock is held by pid {pid} \(report\) since \d\d:\d\d:\d\d UTC",
        str(caught.value),
    )
    warnings = [entry for entry in logs if entry["log_level"] == "warning"]
    assert [entry["attempt"] for entry in warnings] == [1, 2]
    assert all(f"pid {pid}" in entry["held_by"] for entry in warnings)
    assert all("CREATE INDEX" in entry["statement"] for entry in warnings)


@pytest.mark.usefixtures("short_waits")
async def test_no_request_waits_behind_a_blocked_migration_longer_than_its_lock_timeout(
    settings: Settings, database_url: str
) -> None:
    await migrate(settings, "0001")
    holder, client = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    async with holder.transaction():
        await holder.execute("LOCK TABLE users IN ROW EXCLUSIVE MODE")
        migration = asyncio.create_task(migrate(settings))
        await wait_for_blocked_statement(database_url)
        started_at = time.monotonic()
        await client.execute(USER, timeout=60)  # behind the migration, which waits for the table
        seconds = time.monotonic() - started_at
        was_running = not migration.done()
    await asyncio.wait([migration])
    for connection in (holder, client):
        await connection.close()
    await migrate(settings)

    assert was_running
    assert seconds < 30  # 0.5 on an idle machine; without a limit, as long as the table is locked


async def test_failed_migration_names_its_revision_and_statement(settings: Settings, database_url: str) -> None:
    await migrate(settings, "0001")
    connection = await asyncpg.connect(database_url)
    await connection.execute("ALTER TABLE users RENAME COLUMN full_name TO other")
    try:
        with pytest.raises(StartupError) as caught:
            await prepare_database(change(settings, database_migrate=True))
        revision = await connection.fetchval("SELECT version_num FROM alembic_version")
    finally:
        await connection.execute("ALTER TABLE users RENAME COLUMN other TO full_name")
        await connection.close()
        await migrate(settings)

    message = str(caught.value)
    assert message.startswith("Migration 0002 failed at `CREATE INDEX IF NOT EXISTS ix_users_search ON users")
    assert message.endswith("Nothing was changed")
    assert 'column "full_name" does not exist' in message
    assert "\n" not in message
    assert revision == "0001"
