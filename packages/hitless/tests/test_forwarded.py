"""Trusted proxies are recognized on sockets that listen on both IPv6 and IPv4."""

import httpx
import pytest
from gunicorn_process import Start
from hitless.forwarded import add_mapped_addresses
from processes import TIMEOUT, free_port


@pytest.mark.parametrize(
    ("trusted", "added"),
    [
        ("10.0.0.0/8", "::ffff:10.0.0.0/104"),
        ("0.0.0.0/0", "::ffff:0.0.0.0/96"),
        ("10.0.0.5", "::ffff:10.0.0.5"),
        ("127.0.0.1, ::1", "::ffff:127.0.0.1"),
        (["10.0.0.5", "proxy"], "::ffff:10.0.0.5"),
    ],
)
def test_ipv4_proxies_are_added_in_their_ipv6_form(trusted: str | list[str], added: str) -> None:
    names = trusted.split(", ") if isinstance(trusted, str) else trusted

    assert add_mapped_addresses(trusted) == [*names, added]


@pytest.mark.parametrize("trusted", ["*", ["*"]])
def test_trust_in_every_proxy_stays(trusted: str | list[str]) -> None:
    assert add_mapped_addresses(trusted) == "*"


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
@pytest.mark.parametrize(("trusted", "client"), [("127.0.0.0/8,::1", "192.0.2.1"), ("192.0.2.0/24", None)])
def test_proxy_is_trusted_on_a_socket_for_both_protocols(
    start: Start, host: str, trusted: str, client: str | None
) -> None:
    port = free_port()
    start(f"--forwarded-allow-ips={trusted}", f"--bind=[::]:{port}")

    response = httpx.get(f"http://{host}:{port}/client", headers={"X-Forwarded-For": "192.0.2.1"}, timeout=TIMEOUT)

    own = {"127.0.0.1": "::ffff:127.0.0.1", "[::1]": "::1"}[host]
    assert response.text == (client or own)


def test_address_that_the_proxy_adds_in_its_ipv6_form_is_trusted(start: Start) -> None:
    server = start("--forwarded-allow-ips=127.0.0.1,10.0.0.0/8")

    response = httpx.get(f"{server.url}/client", headers={"X-Forwarded-For": "192.0.2.1, ::ffff:10.0.0.5"})

    assert response.text == "192.0.2.1"
