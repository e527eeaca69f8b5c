"""Health checks: liveness has no dependencies. Readiness fails without a database and during shutdown."""

import socket
from asyncio import timeout
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from hitless import drain
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.settings import Settings
from tests.conftest import change, serve
from tests.tcp_proxy import tcp_proxy

NOT_READY = {"error": "Database unavailable", "type": "service_unavailable"}


@pytest.mark.parametrize("path", ["/health", "/health/live"])
async def test_liveness_returns_200(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)

    assert response.status_code == 200
    assert response.json() == {"status": "alive"}


async def test_database_available_is_ready(client: httpx.AsyncClient) -> None:
    response = await client.get("/health/ready")

    assert response.status_code == 200
    assert response.json() == {"status": "ready", "database": "connected"}


@pytest.mark.parametrize("database_url", ["postgresql://user@127.0.0.1:1/none"])
async def test_database_unreachable_is_alive_but_not_ready(settings: Settings) -> None:
    async with serve(settings, prepared=True) as service:
        alive, ready = await service.client.get("/health"), await service.client.get("/health/ready")

    assert alive.status_code == 200
    assert ready.status_code == 503
    assert ready.headers["retry-after"] == "1"
    assert ready.json() == NOT_READY


async def test_pool_exhausted_is_ready(settings: Settings) -> None:
    one_connection = change(settings, database_pool_size=1, database_pool_timeout=0.1)

    async with serve(one_connection) as service, AsyncSession(service.state["engine"]) as session:
        await session.execute(text("SELECT 1"))  # check out the only connection
        response = await service.client.get("/health/ready")

    assert response.status_code == 200


async def test_redis_available_is_reported(settings: Settings, redis_url: str) -> None:
    async with serve(change(settings, redis_url=redis_url)) as service:
        response = await service.client.get("/health/ready")

    assert response.json() == {"status": "ready", "database": "connected", "redis": "connected"}


async def test_redis_unavailable_is_ready(settings: Settings) -> None:
    async with serve(change(settings, redis_url="redis://127.0.0.1:1")) as service:
        response = await service.client.get("/health/ready")

    assert response.status_code == 200
    assert response.json() == {"status": "ready", "database": "connected", "redis": "unavailable"}


async def test_recovered_redis_is_reported(settings: Settings, redis_url: str) -> None:
    url = urlsplit(redis_url)
    async with tcp_proxy(url.hostname or "", url.port or 6379) as proxy:
        proxy.set_state("closed")
        async with serve(change(settings, redis_url=f"redis://{proxy.address}")) as service, timeout(30):
            during = await service.client.get("/health/ready")
            await service.client.get("/users/me")  # a request that cannot be counted in Redis
            proxy.set_state("open")
            while (await service.client.get("/health/ready")).json()["redis"] != "connected":
                pass

    assert during.json()["redis"] == "unavailable"


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that accepts connections but never responds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield "{}:{}".format(*listener.getsockname())


@pytest.mark.usefixtures("short_timeouts")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_database_not_answering_is_not_ready(settings: Settings, silent_server: str) -> None:
    silent = change(settings, database_url=f"postgresql://user@{silent_server}/none", database_connect_timeout=60)

    async with serve(silent, prepared=True) as service, timeout(30):
        response = await service.client.get("/health/ready")

    assert response.status_code == 503
    assert response.json()["error"] == "Database unavailable"


@pytest.mark.usefixtures("short_timeouts")
async def test_redis_not_answering_does_not_delay_readiness(settings: Settings, silent_server: str) -> None:
    silent = change(settings, redis_url=f"redis://{silent_server}")

    async with serve(silent) as service, timeout(4):  # by default, redis-py would make 10 attempts of 5 seconds each
        response = await service.client.get("/health/ready")

    assert response.json()["redis"] == "unavailable"


@pytest.fixture
def draining() -> Iterator[None]:
    """During the test, set the flag that gunicorn's master process sets on SIGTERM."""
    drain._draining[0] = 1  # noqa: SLF001  a real SIGTERM would end the tests
    yield
    drain._draining[0] = 0  # noqa: SLF001  as above


@pytest.mark.usefixtures("draining")
async def test_draining_is_alive_but_not_ready(client: httpx.AsyncClient) -> None:
    alive, ready = await client.get("/health/live"), await client.get("/health/ready")

    assert alive.status_code == 200
    assert ready.status_code == 503
    assert ready.json() == {"error": "Shutting down", "type": "service_unavailable"}
