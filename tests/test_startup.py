"""At startup, the service compares the number of its database connections with the limit of the database."""

import pytest

from app.errors import StartupError
from app.startup import check_connection_limit
from tests.conftest import make_settings


async def test_connections_within_the_limit_cause_no_warning(postgresql_url: str) -> None:
    settings = make_settings(database_url=postgresql_url, database_pool_size=1)

    assert await check_connection_limit(settings, workers=1) is None


async def test_connections_beyond_the_limit_cause_a_warning_with_advice(postgresql_url: str) -> None:
    settings = make_settings(database_url=postgresql_url, database_pool_size=100_000)

    warning = await check_connection_limit(settings, workers=3)

    assert warning
    assert warning.startswith(
        "3 workers, and one more while one is replaced, may open 400004 database connections, but the database allows "
    )
    assert "WEB_CONCURRENCY to at most 1, or raise max_connections" in warning


async def test_unreachable_database_is_reported_without_its_password() -> None:
    settings = make_settings(database_url="postgresql://user:hunter2@127.0.0.1:1/none")

    with pytest.raises(StartupError, match=r"^The database cannot be used: cannot connect to the database: ") as caught:
        await check_connection_limit(settings, workers=1)

    assert "hunter2" not in str(caught.value)


async def test_sqlite_has_no_connection_limit() -> None:
    assert await check_connection_limit(make_settings(database_pool_size=100_000), workers=1) is None
