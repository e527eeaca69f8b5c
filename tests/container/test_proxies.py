"""What a client can make the service believe about its address: nothing, unless it is a trusted proxy."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from processes import PATIENCE

from tests.container.engine import Container, json_lines, running
from tests.container.service import options

LIMIT = 3


@contextmanager
def service(image: str, **settings: str) -> Iterator[Container]:
    """One worker, and few requests a client."""
    with running(image, *options(WEB_CONCURRENCY="1", RATE_LIMIT=f"{LIMIT}/hour", **settings)) as container:
        yield container.is_healthy()


def ask(container: Container, forwarded_for: str) -> int:
    """Asks from this host, which the container sees as the gateway of its network; gives the status."""
    headers = {"X-Forwarded-For": forwarded_for}
    return httpx.get(f"http://{container.ip}:8000/users/me", headers=headers, timeout=PATIENCE).status_code


def clients(container: Container) -> list[str]:
    """The clients in the access log."""
    return [line["client"] for line in json_lines(container.log) if line["event"] == "request"]


def gateway(container: Container) -> str:
    return container.inspect("{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}")


def test_a_forged_address_from_somebody_who_is_no_proxy_changes_nothing(image: str) -> None:
    with service(image) as container:
        answers = [ask(container, f"203.0.113.{number}") for number in range(LIMIT + 1)]

        assert answers == [401] * LIMIT + [429]
        assert set(clients(container)) == {gateway(container)}


def test_each_client_of_a_trusted_proxy_is_one_whatever_it_says_about_itself(image: str) -> None:
    with service(image, FORWARDED_ALLOW_IPS="10.0.0.0/8,172.16.0.0/12,192.168.0.0/16") as container:
        answers = [ask(container, f"198.51.100.{number}, 203.0.113.1") for number in range(LIMIT + 1)]
        another = ask(container, "203.0.113.2")

        assert answers == [401] * LIMIT + [429]
        assert another == 401
        assert clients(container) == ["203.0.113.1"] * (LIMIT + 1) + ["203.0.113.2"]
