"""HTTPS: no request is lost, and an unusable certificate is reported in one line."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from certificates import TLS, make_certificate
from processes import TIMEOUT

from app import PREFIX
from tests.container.engine import Container, run_container
from tests.container.load import Target, assert_no_request_lost, continue_load, load
from tests.container.service import SLOW_APP, options, run_service, slow_command, wait_for_workers

SETTINGS = {"SSL_CERTFILE": "/tls/cert.pem", "SSL_KEYFILE": "/tls/key.pem"}
PUBLISH = "--publish=127.0.0.1::8000"  # 127.0.0.1 is the address in the certificate


def mount(folder: Path) -> str:
    """Return the Docker option that mounts the folder at the path where SETTINGS expects the certificate and key."""
    return f"--volume={folder}:/tls:ro"


def get(container: Container, path: str, tls: TLS) -> httpx.Response:
    return httpx.get(f"{container.url.replace('http', 'https')}{path}", verify=tls.client, timeout=TIMEOUT)


def test_docker_stop_finishes_a_running_https_request(image: str, tls: TLS, background: ThreadPoolExecutor) -> None:
    docker_options = (SLOW_APP, mount(tls.certfile.parent), PUBLISH)
    with run_service(image, *docker_options, command=slow_command(), **SETTINGS) as container:
        container.wait_until_healthy()  # the container's health check uses HTTPS as well
        assert get(container, "/health", tls).status_code == 200
        response = background.submit(get, container, "/slow/5", tls)
        container.wait_for_log("slow request")

        container.stop(seconds=60)

        assert response.result().status_code == 200
        assert response.result().headers["connection"] == "close"
        assert container.exit_code == 0
        assert container.log_levels == {"info"}


def test_sighup_loses_no_https_request(image: str, tls: TLS) -> None:
    with run_service(image, mount(tls.certfile.parent), PUBLISH, **SETTINGS) as container:
        port = urlsplit(container.url).port or 443
        with load(Target("127.0.0.1", port, f"{PREFIX}/health/live", tls=tls.client)) as report:
            continue_load(report)
            container.send_signal("HUP")
            wait_for_workers(container, 4)
            continue_load(report, 2)

        assert_no_request_lost(report)


def make_key_unreadable(folder: Path) -> None:
    (folder / "key.pem").chmod(0)


def replace_key(folder: Path) -> None:
    certificate = (folder / "cert.pem").read_text()
    make_certificate(folder)
    (folder / "cert.pem").write_text(certificate)


def replace_certificate_with_text(folder: Path) -> None:
    (folder / "cert.pem").write_text("hello")


MISMATCH = "/tls/cert.pem and /tls/key.pem are not a certificate and its unencrypted key"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (make_key_unreadable, "/tls/key.pem cannot be read: Permission denied"),
        (replace_key, MISMATCH),
        (replace_certificate_with_text, MISMATCH),
    ],
    ids=["unreadable key", "key of another certificate", "not a certificate"],
)
def test_unusable_certificate_exits_with_one_error_line(
    image: str, readable_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    make_certificate(readable_path)
    spoil(readable_path)

    with run_container(image, *options(**SETTINGS), mount(readable_path)) as container:
        assert container.wait_for_exit() == 1

        assert [line["event"] for line in container.log_lines if line["level"] != "info"] == [message]
