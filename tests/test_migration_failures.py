"""Migrations that fail or wait for a lock change nothing, block no request for long, and log the reason."""

import asyncio
import itertools
import re
import time
from collections import Counter

import asyncpg
import httpx
import pytest
import structlog

from app import migrations
from app.errors import StartupError
from app.migrations import MigrationFailed, migrate
from app.settings import Settings
from app.startup import prepare_database
from tests.conftest import change, serve
from tests.people import sign_up

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


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
        await asyncio.sleep(0.6)  # longer than a migration's lock timeout
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
    statuses, slowest = Counter[int](), 0.0

    async def send_requests(client: httpx.AsyncClient, auth: dict[str, str], migration: asyncio.Task[None]) -> None:
        nonlocal slowest
        for method, body in itertools.cycle([("GET", None), ("PATCH", {"full_name": "A"})]):
            started_at = time.monotonic()
            response = await client.request(method, "/users/me", headers=auth, json=body)
            slowest = max(slowest, time.monotonic() - started_at)
            statuses[response.status_code] += 1
            if migration.done() or response.status_code != 200:
                return
            await asyncio.sleep(0.05)

    holder = await asyncpg.connect(database_url)
    newest = await holder.fetchval("SELECT version_num FROM alembic_version")
    async with serve(change(settings, database_statement_timeout=20)) as service:
        person = await sign_up(service.client)
        # The migration after 0002 begins by altering the table `users`, so it waits for the lock that is taken below.
        await holder.execute("UPDATE alembic_version SET version_num = '0002'")
        async with holder.transaction():
            await holder.execute("LOCK TABLE users IN ACCESS SHARE MODE")
            migration = asyncio.create_task(migrate(settings))
            await asyncio.gather(*(send_requests(service.client, person.auth, migration) for _ in range(4)))
        with pytest.raises(MigrationFailed, match="could not lock a table within"):
            await migration
    await holder.execute("UPDATE alembic_version SET version_num = $1", newest)
    await holder.close()

    assert set(statuses) == {200}
    assert 0.2 < slowest < 20  # about 0.6 on an idle machine, because of the migration's lock timeout


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
