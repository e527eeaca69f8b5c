"""What is found out before a worker starts."""

import pytest
from app.server.checks import check_connections
from pydantic import SecretStr

from app.errors import StartupError
from app.settings import DatabaseSettings


async def test_as_many_connections_as_the_database_allows_are_nothing_to_speak_of(postgresql_url: str) -> None:
    settings = DatabaseSettings(url=SecretStr(postgresql_url), pool_size=1)

    assert await check_connections(settings, workers=1) is None


async def test_more_than_that_are_said_with_what_to_set(postgresql_url: str) -> None:
    settings = DatabaseSettings(url=SecretStr(postgresql_url), pool_size=100_000)

    advice = await check_connections(settings, workers=3)

    assert advice
    assert advice.startswith("3 workers and a successor may open 400004 database connections, but the database allows ")
    assert "WEB_CONCURRENCY to at most 1, or raise max_connections" in advice


async def test_a_database_that_is_away_by_now_is_said_to_be() -> None:
    settings = DatabaseSettings(url=SecretStr("postgresql://user:hunter2@127.0.0.1:1/none"))

    with pytest.raises(StartupError, match=r"^The database cannot be used: cannot connect to the database: ") as caught:
        await check_connections(settings, workers=1)

    assert "hunter2" not in str(caught.value)


async def test_sqlite_knows_no_limit() -> None:
    assert await check_connections(DatabaseSettings(pool_size=100_000), workers=1) is None
