"""Nobody waits for a connection while others are served who came later, and none gets lost with who gives up."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only, greenlet_spawn

from app.database import DatabaseUnreachable, create_engine
from app.settings import Settings

READ = select(1)


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    """An engine with one connection."""
    engine = create_engine(change(settings, database_pool_size=1))
    yield engine
    await engine.dispose()


async def test_a_connection_goes_to_whoever_has_waited_longest(engine: AsyncEngine) -> None:
    served = []

    async def read(name: str) -> None:
        async with engine.connect() as connection:
            served.append(name)
            await connection.execute(READ)

    def give_back_and_take_again() -> None:
        connection = engine.sync_engine.raw_connection()
        waiting = [asyncio.create_task(read(name)) for name in ("first", "second")]
        await_only(asyncio.sleep(0))
        connection.close()
        engine.sync_engine.raw_connection().close()
        served.append("third")
        await_only(asyncio.gather(*waiting))

    await greenlet_spawn(give_back_and_take_again)

    assert served == ["first", "second", "third"]


async def test_whoever_gives_up_in_the_moment_of_being_served_leaves_it_to_the_next(engine: AsyncEngine) -> None:
    async def read() -> int | None:
        async with engine.connect() as connection:
            result: int | None = await connection.scalar(READ)
            return result

    def serve_and_cancel() -> asyncio.Task[int | None]:
        connection = engine.sync_engine.raw_connection()
        waiting = [asyncio.create_task(read()) for _ in range(2)]
        await_only(asyncio.sleep(0))
        connection.close()
        waiting[0].cancel()
        return waiting[1]

    second = await greenlet_spawn(serve_and_cancel)

    async with asyncio.timeout(60):
        assert await second == 1
        assert await read() == 1


async def test_whoever_waits_for_somebody_who_cannot_connect_tries_next(settings: Settings) -> None:
    """Whatever became of that attempt; else they would wait as long as the pool lets them, beside a free place."""
    failures = iter([DatabaseUnreachable, asyncio.CancelledError])
    engine = create_engine(settings.database.model_copy(update={"pool_size": 1, "pool_timeout": 600}))

    @event.listens_for(engine.sync_engine, "do_connect")
    def fail_twice(*_: object) -> None:
        await_only(asyncio.sleep(0))  # in which the others come to stand in line
        if failure := next(failures, None):
            raise failure

    async def read() -> int | None:
        async with engine.connect() as connection:
            result: int | None = await connection.scalar(READ)
            return result

    async with asyncio.timeout(60):
        results = await asyncio.gather(*(read() for _ in range(4)), return_exceptions=True)
    await engine.dispose()

    assert [type(result) for result in results] == [DatabaseUnreachable, asyncio.CancelledError, int, int]
