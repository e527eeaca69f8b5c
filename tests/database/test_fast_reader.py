"""FastReader returns the same values as SQLAlchemy, discards connections in an unknown state, and queues fairly."""

import asyncio
import enum
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from functools import partial
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Boolean, Enum, Integer, Numeric, bindparam, column, event, literal_column, select
from sqlalchemy.exc import StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from app.database import DatabaseUnreachable, FastReader, create_engine
from app.database.errors import is_unavailable
from app.database.fast import Query
from app.settings import Settings
from tests.conftest import change

ONE: Query = select(literal_column("1", Integer))
PID: Query = select(literal_column("pg_backend_pid()"))


class Colour(enum.Enum):
    RED = "red"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings with a pool of one connection and a short statement timeout."""
    return change(settings, database_pool_size=1, database_statement_timeout=0.2, database_pool_timeout=60)


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(settings)
    yield engine
    await engine.dispose()


@pytest.fixture
def reader(engine: AsyncEngine, settings: Settings) -> FastReader:
    return FastReader(engine, settings)


async def fetch_values(reader: FastReader, query: Query, **parameters: object) -> tuple[object, ...]:
    """Run the query, and return the values in the first row of the result."""
    row = await reader.fetch_one(query, **parameters)
    assert row is not None
    return tuple(row)


async def test_enum_is_converted_by_sqlalchemy(reader: FastReader) -> None:
    query: Query = select(literal_column("'RED'", Enum(Colour)), literal_column("1"))

    assert await fetch_values(reader, query) == (Colour.RED, 1)


async def test_numeric_is_converted_by_sqlalchemy(reader: FastReader) -> None:
    query: Query = select(literal_column("1.5", Numeric(3, 1)))

    assert await fetch_values(reader, query) == (Decimal("1.5"),)


async def test_in_list_is_expanded_by_sqlalchemy(reader: FastReader) -> None:
    query: Query = select(literal_column("1", Integer)).where(literal_column("2", Integer).in_([2, 4]))

    assert [tuple(row) for row in await reader.fetch_all(query)] == [(1,)]


@pytest.mark.parametrize("value", [True, False, None])
async def test_boolean_parameter_may_be_null(reader: FastReader, value: bool | None) -> None:
    query: Query = select(literal_column("1")).where(bindparam("value", type_=Boolean).is_(None))

    assert len(await reader.fetch_all(query, value=value)) == (value is None)


async def test_literal_in_a_query_is_used_as_a_parameter(reader: FastReader) -> None:
    query: Query = select(literal_column("1")).limit(0)

    assert await reader.fetch_all(query) == []


async def test_parameter_overrides_the_default_of_a_bindparam(reader: FastReader) -> None:
    query: Query = select(literal_column("1")).where(
        literal_column("1", Integer) == bindparam("number", 1, type_=Integer)
    )

    assert len(await reader.fetch_all(query)) == 1
    assert await reader.fetch_all(query, number=2) == []


async def test_callable_parameter_is_called_for_each_query(reader: FastReader) -> None:
    numbers = iter([1, 2])
    number = bindparam("number", callable_=lambda: next(numbers), type_=Integer)
    query: Query = select(literal_column("1")).where(literal_column("1", Integer) == number)

    assert [len(await reader.fetch_all(query)) for _ in range(2)] == [1, 0]


async def test_missing_parameter_is_an_error(reader: FastReader, engine: AsyncEngine) -> None:
    query: Query = select(literal_column("1")).where(literal_column("1", Integer) == bindparam("number", type_=Integer))

    error = KeyError if engine.dialect.name == "postgresql" else StatementError
    with pytest.raises(error, match="number"):
        await reader.fetch_one(query, nummber=1)


async def test_no_row_returns_none(reader: FastReader) -> None:
    assert await reader.fetch_one(ONE.where(literal_column("1", Integer) == 2)) is None


# Connections ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_connection_without_a_response_is_replaced(reader: FastReader, engine: AsyncEngine) -> None:
    # Disable the server's statement timeout, so that the driver's timeout expires instead.
    disable_timeout: Query = select(
        literal_column("set_config('statement_timeout', '0', false)"), literal_column("pg_backend_pid()")
    )
    _, pid = await fetch_values(reader, disable_timeout)

    with pytest.raises(DatabaseUnreachable):
        await reader.fetch_one(select(literal_column("CASE WHEN pg_sleep(60) IS NULL THEN 0 ELSE 1 END")))

    assert await fetch_values(reader, PID) != (pid,)
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_connection_is_kept_after_an_invalid_statement(reader: FastReader) -> None:
    before = await fetch_values(reader, PID)

    with pytest.raises(asyncpg.UndefinedColumnError):
        await reader.fetch_one(select(column("nowhere")))

    assert await fetch_values(reader, PID) == before


# The queue -----------------------------------------------------------------------------------------------------------


async def test_waiting_requests_are_served_in_order_of_arrival(reader: FastReader) -> None:
    served = []

    async def read(name: str, times: int) -> None:
        for _ in range(times):
            await reader.fetch_one(ONE)
            served.append(name)

    await asyncio.gather(read("ann", 3), read("bob", 2), read("cyd", 1))

    assert served == ["ann", "bob", "cyd", "ann", "bob", "ann"]


async def test_cancelled_request_passes_its_turn_to_the_next(reader: FastReader, engine: AsyncEngine) -> None:
    """Each round cancels the second request a little later.

    The first rounds cancel it while it is queued, and the last rounds after its turn has come.
    """
    loop = asyncio.get_running_loop()
    cancel_second: list[Callable[[], None]] = []

    def cancel_after(steps: int, task: asyncio.Task[object]) -> None:
        if steps:
            loop.call_soon(cancel_after, steps - 1, task)
        else:
            task.cancel()

    event.listen(engine.sync_engine, "checkin", lambda *_: cancel_second and cancel_second.pop()())

    for steps in range(20):
        first, second, third = [asyncio.create_task(fetch_values(reader, ONE)) for _ in range(3)]
        cancel_second[:] = [partial(cancel_after, steps, second)]
        async with asyncio.timeout(30):
            results = await asyncio.gather(first, second, third, return_exceptions=True)

        assert results[0] == results[2] == (1,)
        assert isinstance(results[1], asyncio.CancelledError) or results[1] == (1,)


async def test_failed_connection_attempt_passes_the_turn_to_the_next(
    reader: FastReader, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[type[BaseException]] = []
    asyncpg_connect = asyncpg.connect

    def fail(*_: object) -> None:
        if failures:
            raise failures.pop(0)

    async def fail_or_connect(*args: Any, **kwargs: Any) -> asyncpg.Connection:  # noqa: ANN401  passed through
        fail()
        return await asyncpg_connect(*args, **kwargs)

    event.listen(engine.sync_engine, "do_connect", fail)  # for SQLite; the PostgreSQL engine uses a connect function
    monkeypatch.setattr(asyncpg, "connect", fail_or_connect)

    async with asyncio.timeout(30):
        async with engine.connect() as connection:
            reads = [asyncio.create_task(fetch_values(reader, ONE)) for _ in range(4)]
            await asyncio.sleep(0)  # the first task waits for this connection, the others queue behind it
            failures += [DatabaseUnreachable, asyncio.CancelledError]
            await connection.invalidate()
        results = await asyncio.gather(*reads, return_exceptions=True)

    assert [type(result) for result in results] == [DatabaseUnreachable, asyncio.CancelledError, tuple, tuple]


async def test_request_without_a_connection_times_out(engine: AsyncEngine, settings: Settings) -> None:
    impatient = change(settings, database_pool_timeout=0.1)
    engine = create_engine(impatient)
    reader = FastReader(engine, impatient)

    async with engine.connect():
        reads = [reader.fetch_one(ONE) for _ in range(3)]
        results = await asyncio.gather(*reads, return_exceptions=True)
    after = await fetch_values(reader, ONE)
    await engine.dispose()

    assert [type(result) for result in results] == [PoolTimeoutError] * 3
    assert all(is_unavailable(result) for result in results if isinstance(result, Exception))
    assert after == (1,)
