"""What is found out before a worker starts."""

import socket
from pathlib import Path

import pytest
from app.server.checks import check_address, check_certificate, check_connections
from certificates import TLS
from pydantic import SecretStr

from app.errors import StartupError
from app.settings import DatabaseSettings

HOSTS = ["127.0.0.1", "0.0.0.0"]  # noqa: S104  as a container listens


@pytest.mark.parametrize("host", HOSTS)
def test_a_free_port_is_free_and_stays_so(host: str, port: int) -> None:
    check_address(host, port)
    check_address(host, port)


@pytest.mark.parametrize("host", HOSTS)
def test_a_taken_port_is_said_to_be_in_use(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        with pytest.raises(StartupError, match=rf"^Cannot listen on {host}:{port}: Address already in use$"):
            check_address(host, port)


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(StartupError, match=r"^Cannot listen on 2001:db8::1:8000: "):
        check_address("2001:db8::1", 8000)


def test_a_certificate_and_its_key_are_in_order(tls: TLS) -> None:
    check_certificate(tls.certfile, tls.keyfile)


def test_a_missing_file_is_named(tls: TLS, tmp_path: Path) -> None:
    missing = tmp_path / "nothing.pem"

    with pytest.raises(StartupError, match=rf"^SSL_KEYFILE: {missing} cannot be read: No such file or directory$"):
        check_certificate(tls.certfile, missing)


def test_files_that_are_not_a_pair_are_said_not_to_be(tls: TLS) -> None:
    with pytest.raises(StartupError, match=r"^SSL_CERTFILE and SSL_KEYFILE do not hold a certificate and"):
        check_certificate(tls.certfile, tls.certfile)


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
