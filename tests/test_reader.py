"""The reader gives the values that the models promise, and keeps no connection that may say anything next."""

import enum
from collections.abc import AsyncIterator
from decimal import Decimal

import asyncpg
import pytest
from sqlalchemy import Enum, Integer, Numeric, bindparam, column, literal_column, select
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import DatabaseUnreachable, create_engine
from app.database.fast import Query
from app.settings import Settings

PID: Query = select(literal_column("pg_backend_pid()"))


class Colour(enum.Enum):
    RED = "red"


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(settings.database.model_copy(update={"pool_size": 1, "statement_timeout": 0.2}))
    yield engine
    await engine.dispose()


async def test_a_type_that_only_sqlalchemy_knows_comes_back_as_it_should(engine: AsyncEngine) -> None:
    row = await Reader(engine).first(select(literal_column("'RED'", Enum(Colour)), literal_column("1")))

    assert tuple(row) == (Colour.RED, 1)


async def test_a_number_is_what_sqlalchemy_makes_of_it(engine: AsyncEngine) -> None:
    row = await Reader(engine).first(select(literal_column("1.5", Numeric(3, 1))))

    assert tuple(row) == (Decimal("1.5"),)


async def test_a_list_is_what_sqlalchemy_makes_of_it(engine: AsyncEngine) -> None:
    query: Query = select(literal_column("1", Integer)).where(literal_column("2", Integer).in_([2, 4]))

    assert [tuple(row) for row in await Reader(engine).all(query)] == [(1,)]


async def test_a_parameter_that_is_not_given_is_an_error(engine: AsyncEngine) -> None:
    query: Query = select(literal_column("1")).where(literal_column("1", Integer) == bindparam("number", type_=Integer))

    with pytest.raises((KeyError, StatementError)):
        await Reader(engine).first(query, nummber=1)


async def test_a_row_has_its_values_as_attributes(engine: AsyncEngine) -> None:
    row = await Reader(engine).first(select(literal_column("1").label("number")))

    assert row.number == 1
    assert not hasattr(row, "another")


async def test_a_value_in_a_query_is_used_as_one_that_is_given(engine: AsyncEngine) -> None:
    query: Query = select(literal_column("1")).limit(0)

    assert await Reader(engine).all(query) == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_connection_whose_answer_does_not_come_is_replaced(
    engine: AsyncEngine,
) -> None:
    reader = Reader(engine)
    # By itself the server ends what takes too long; here it does not, so that the driver's own limit is met.
    never: Query = select(
        literal_column("set_config('statement_timeout', '0', false)"), literal_column("pg_backend_pid()")
    )
    _, pid = await reader.first(never)

    with pytest.raises(DatabaseUnreachable):
        await reader.first(select(literal_column("CASE WHEN pg_sleep(60) IS NULL THEN 0 ELSE 1 END")))

    assert tuple(await reader.first(PID)) != (pid,)
    assert engine.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # every pool here has it


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_connection_that_was_only_asked_wrongly_is_kept(engine: AsyncEngine) -> None:
    reader = Reader(engine)
    before = tuple(await reader.first(PID))

    with pytest.raises(asyncpg.UndefinedColumnError):
        await reader.first(select(column("nowhere")))

    assert tuple(await reader.first(PID)) == before
