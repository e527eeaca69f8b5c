"""Behind proxies, only trusted ones may forward client addresses, and idle timeouts lose no request."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import httpx
from processes import TIMEOUT

from app import PREFIX
from tests.container.engine import Container, run_container, run_docker
from tests.container.service import get, run_service

LIMIT = 3
CLIENTS = 50
CONNECTIONS = 20  # per client; a small number, because httpx's overhead grows with its square


@contextmanager
def run_limited_service(image: str, **settings: str) -> Iterator[Container]:
    """Run the service with one worker and a low default rate limit."""
    with run_service(image, WEB_CONCURRENCY="1", RATE_LIMIT=f"{LIMIT}/hour", **settings) as container:
        yield container


def get_status(container: Container, forwarded_for: str) -> int:
    """Send a request with this X-Forwarded-For header and return the status.

    To the container, the request appears to come from the gateway of the container's network.
    """
    return get(container, "/users/me", {"X-Forwarded-For": forwarded_for}).status_code


def logged_clients(container: Container, number: int) -> list[str]:
    """Wait until the access log contains `number` requests, and return the clients' addresses."""
    container.wait_for_log('"event": "request"', times=number)
    return [line["client"] for line in container.log_lines if line["event"] == "request"]


def gateway(container: Container) -> str:
    return container.inspect("{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}")


def test_forged_address_from_an_untrusted_client_is_ignored(image: str) -> None:
    with run_limited_service(image) as container:
        statuses = [get_status(container, f"203.0.113.{number}") for number in range(LIMIT + 1)]

        assert statuses == [401] * LIMIT + [429]
        assert logged_clients(container, LIMIT + 1) == [gateway(container)] * (LIMIT + 1)


def test_clients_behind_a_trusted_proxy_are_identified_by_the_address_that_it_adds(image: str) -> None:
    with run_limited_service(image, FORWARDED_ALLOW_IPS="10.0.0.0/8,172.16.0.0/12,192.168.0.0/16") as container:
        statuses = [get_status(container, f"198.51.100.{number}, 203.0.113.1") for number in range(LIMIT + 1)]
        other_client = get_status(container, "203.0.113.2")

        assert statuses == [401] * LIMIT + [429]
        assert other_client == 401
        assert logged_clients(container, LIMIT + 2) == ["203.0.113.1"] * (LIMIT + 1) + ["203.0.113.2"]


async def post_after_five_idle_seconds(url: str) -> Counter[object]:
    """Open many connections, send a POST request on each after about five idle seconds, and count the results."""

    async def post(client: httpx.AsyncClient) -> object:
        await client.get(f"{PREFIX}/health/live")
        await asyncio.sleep(random.uniform(4.9, 5.1))  # noqa: S311  close to the default idle timeout, 5 seconds
        try:
            return (await client.post(f"{PREFIX}/auth/refresh", json={"refresh_token": "x"})).status_code
        except httpx.TransportError as error:
            return type(error).__name__

    limits = httpx.Limits(keepalive_expiry=60)
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits))
            for _ in range(CLIENTS)
        ]
        return Counter(await asyncio.gather(*(post(client) for client in clients * CONNECTIONS)))


async def test_longer_keepalive_than_nginx_loses_no_request(image: str, network: str) -> None:
    nginx = run_docker("build", "--quiet", Path(__file__).with_name("nginx"))
    options = (f"--network={network}", "--network-alias=service")
    # Set MAX_REQUESTS to 0 so that no worker is replaced. A replaced worker would close its idle connections.
    with (
        run_service(image, *options, KEEPALIVE_SECONDS="65", MAX_REQUESTS="0") as service,
        run_container(nginx, f"--network={network}") as proxy,
    ):
        proxied = await post_after_five_idle_seconds(f"http://{proxy.ip}:8080")
        direct = await post_after_five_idle_seconds(f"http://{service.ip}:8000")
    with run_service(image, MAX_REQUESTS="0") as service:
        by_default = await post_after_five_idle_seconds(f"http://{service.ip}:8000")
    print(f"-- behind nginx: {proxied}; direct: {direct}; direct, closed after 5 s: {by_default}")  # noqa: T201

    assert proxied == direct == {401: CLIENTS * CONNECTIONS}
