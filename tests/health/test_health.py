"""Liveness asks nothing of anybody; readiness asks the database."""

import socket
from asyncio import timeout
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from app.server import drain
from fastapi import APIRouter, Depends, Request, Response
from pydantic import SecretStr
from sqlalchemy import column, select, text

from app.health.router import router
from app.settings import Settings
from tests.conftest import change, serve
from tests.test_outages import out_of_reach, with_database


async def takes_nothing() -> Response:
    return Response()


async def takes_the_request(_: Request) -> Response:
    return Response()


@pytest.mark.parametrize(
    ("probe", "dependencies"), [(takes_nothing, []), (takes_the_request, [Depends(takes_nothing)])]
)
def test_what_would_not_be_looked_at_is_refused_where_it_is_written(
    probe: Callable[..., Any], dependencies: list[Any]
) -> None:
    with pytest.raises(TypeError, match=probe.__name__):
        APIRouter(route_class=router.route_class, dependencies=dependencies).get("/probe")(probe)


@pytest.mark.parametrize("path", ["/health", "/health/live"])
async def test_the_process_is_alive(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)

    assert response.status_code == 200
    assert response.json() == {"status": "alive"}


async def test_with_its_database_the_service_is_ready(client: httpx.AsyncClient) -> None:
    response = await client.get("/health/ready")

    assert response.status_code == 200
    assert response.json() == {"status": "ready", "database": "connected"}


async def test_without_its_database_it_is_alive_but_not_ready(settings: Settings) -> None:
    async with serve(out_of_reach(settings), prepared=True) as service:
        alive, ready = await service.client.get("/health"), await service.client.get("/health/ready")

    assert alive.status_code == 200
    assert ready.status_code == 503
    assert ready.headers["retry-after"] == "1"
    assert ready.json() == {"error": "Database unavailable", "type": "service_unavailable"}


async def test_a_service_with_no_connection_to_spare_is_ready(settings: Settings) -> None:
    only_one = with_database(settings, pool_size=1, pool_timeout=0.1)

    async with serve(only_one) as service, service.state["write_sessions"]() as session:
        await session.execute(text("SELECT 1"))  # which takes it
        response = await service.client.get("/health/ready")

    assert response.status_code == 200


async def test_a_database_that_is_asked_wrongly_is_a_bug_and_not_an_outage(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.health.router._NOTHING", select(column("nowhere")))

    async with serve(settings) as service:
        response = await service.client.get("/health/ready")

    assert response.status_code == 500


async def test_redis_is_reported(settings: Settings, redis_url: str) -> None:
    with_redis = change(settings, redis_url=redis_url)

    async with serve(with_redis) as service:
        response = await service.client.get("/health/ready")

    assert response.json() == {"status": "ready", "database": "connected", "redis": "connected"}


async def test_without_redis_the_service_is_ready_all_the_same(settings: Settings) -> None:
    without_redis = change(settings, redis_url="redis://127.0.0.1:1")

    async with serve(without_redis) as service:
        response = await service.client.get("/health/ready")

    assert response.status_code == 200
    assert response.json() == {"status": "ready", "database": "connected", "redis": "unavailable"}


@pytest.fixture
def silence() -> Iterator[str]:
    """The address of a server that lets clients connect and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield "{}:{}".format(*listener.getsockname())


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_nobody_waits_for_a_database_that_does_not_answer(settings: Settings, silence: str) -> None:
    url = SecretStr(f"postgresql+asyncpg://user@{silence}/none")

    async with serve(with_database(settings, url=url, connect_timeout=60), prepared=True) as service, timeout(30):
        response = await service.client.get("/health/ready")

    assert response.status_code == 503
    assert response.json()["error"] == "Database unavailable"


async def test_nobody_waits_for_a_redis_that_does_not_answer(settings: Settings, silence: str) -> None:
    silent = change(settings, redis_url=f"redis://{silence}")

    async with serve(silent) as service, timeout(4):  # redis-py's own patience is 5 seconds, ten times
        response = await service.client.get("/health/ready")

    assert response.json()["redis"] == "unavailable"


@pytest.fixture
def ending() -> Iterator[None]:
    """What the master writes when it is told to end."""
    drain._draining[0] = 1  # noqa: SLF001  SIGTERM would end the tests
    yield
    drain._draining[0] = 0  # noqa: SLF001  the same


@pytest.mark.usefixtures("ending")
async def test_a_server_that_is_about_to_end_is_alive_but_not_ready(client: httpx.AsyncClient) -> None:
    alive, ready = await client.get("/health/live"), await client.get("/health/ready")

    assert alive.status_code == 200
    assert ready.status_code == 503
    assert ready.json() == {"error": "Shutting down", "type": "service_unavailable"}
