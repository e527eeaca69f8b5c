"""What happens in HTTPS: all that happens in HTTP, and one line about files that are not in order."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from certificates import TLS, make_certificate
from processes import PATIENCE, until

from tests.container.engine import Container, json_lines, running
from tests.container.load import Target, goes_on, load, nothing_is_lost
from tests.container.service import SLOW, options, slow_service, workers


def with_files(folder: Path, certificate: str = "cert.pem", key: str = "key.pem") -> list[str]:
    """The options of `docker run` that give it a certificate and a key."""
    return [
        f"--volume={folder}:/tls:ro",
        *options(SSL_CERTFILE=f"/tls/{certificate}", SSL_KEYFILE=f"/tls/{key}"),
        "--publish=127.0.0.1::8000",  # for the name in the certificate
    ]


def get(container: Container, path: str, tls: TLS) -> httpx.Response:
    return httpx.get(f"{container.url.replace('http', 'https')}{path}", verify=tls.client, timeout=PATIENCE)


def test_a_key_and_a_certificate_turn_on_https_and_a_request_in_flight_is_answered_at_the_end(
    image: str, tls: TLS, background: ThreadPoolExecutor
) -> None:
    with running(image, *SLOW, *with_files(tls.certfile.parent), command=slow_service()) as container:
        container.is_healthy()  # so its HEALTHCHECK asks in HTTPS too
        assert get(container, "/health", tls).status_code == 200
        answer = background.submit(get, container, "/slow/5", tls)
        until(lambda: "slow request" in container.log, "the request has arrived")

        container.stop(seconds=60)

        assert answer.result().status_code == 200
        assert answer.result().headers["connection"] == "close"
        assert container.inspect("{{.State.ExitCode}}") == "0"
        assert {line["level"] for line in json_lines(container.log)} == {"info"}


def test_in_https_too_sighup_replaces_all_workers_and_no_request_is_lost(image: str, tls: TLS) -> None:
    with running(image, *with_files(tls.certfile.parent)) as container:
        container.is_healthy()
        port = int(container.url.rpartition(":")[2])
        with load(Target("127.0.0.1", port, "/health/live", tls=tls.client)) as report:
            goes_on(report)
            container.signal("HUP")
            until(lambda: workers(container) == 4, "new workers")
            goes_on(report, 2)

        nothing_is_lost(report)


def unreadable(folder: Path) -> None:
    (folder / "key.pem").chmod(0)


def of_another_pair(folder: Path) -> None:
    certificate = (folder / "cert.pem").read_text()
    make_certificate(folder)
    (folder / "cert.pem").write_text(certificate)


def not_a_certificate(folder: Path) -> None:
    (folder / "cert.pem").write_text("hello")


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (unreadable, "SSL_KEYFILE: /tls/key.pem cannot be read: Permission denied"),
        (of_another_pair, "SSL_CERTFILE and SSL_KEYFILE do not hold a certificate and its unencrypted key"),
        (not_a_certificate, "SSL_CERTFILE and SSL_KEYFILE do not hold a certificate and its unencrypted key"),
    ],
)
def test_files_that_are_not_in_order_are_said_in_one_line(
    image: str, readable_path: Path, spoil: Callable[[Path], None], complaint: str
) -> None:
    make_certificate(readable_path)
    spoil(readable_path)

    with running(image, *with_files(readable_path)) as container:
        assert container.ends() == 1

        assert [line["event"] for line in json_lines(container.log) if line["level"] != "info"] == [complaint]
