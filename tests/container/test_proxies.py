"""`X-Forwarded-For` is trusted only from proxies that FORWARDED_ALLOW_IPS names."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.container.engine import Container
from tests.container.service import get, run_service

LIMIT = 3


@contextmanager
def run_limited_service(image: str, **settings: str) -> Iterator[Container]:
    """Run the service with one worker and a low rate limit."""
    with run_service(image, WEB_CONCURRENCY="1", RATE_LIMIT=f"{LIMIT}/hour", **settings) as container:
        yield container


def get_status(container: Container, forwarded_for: str) -> int:
    """Send a request from this host, which the container sees as its network's gateway, and return the status."""
    return get(container, "/users/me", {"X-Forwarded-For": forwarded_for}).status_code


def logged_clients(container: Container) -> list[str]:
    """Return the client of each request in the access log."""
    return [line["client"] for line in container.log_lines if line["event"] == "request"]


def gateway(container: Container) -> str:
    return container.inspect("{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}")


def test_forged_address_from_an_untrusted_client_is_ignored(image: str) -> None:
    with run_limited_service(image) as container:
        statuses = [get_status(container, f"203.0.113.{number}") for number in range(LIMIT + 1)]

        assert statuses == [401] * LIMIT + [429]
        assert set(logged_clients(container)) == {gateway(container)}


def test_clients_behind_a_trusted_proxy_are_identified_by_the_address_that_it_adds(image: str) -> None:
    with run_limited_service(image, FORWARDED_ALLOW_IPS="10.0.0.0/8,172.16.0.0/12,192.168.0.0/16") as container:
        statuses = [get_status(container, f"198.51.100.{number}, 203.0.113.1") for number in range(LIMIT + 1)]
        other_client = get_status(container, "203.0.113.2")

        assert statuses == [401] * LIMIT + [429]
        assert other_client == 401
        assert logged_clients(container) == ["203.0.113.1"] * (LIMIT + 1) + ["203.0.113.2"]
