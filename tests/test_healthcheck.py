"""The image's HEALTHCHECK command exits with status 0 only if /health responds with 200."""

import http.server
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import pytest
from certificates import TLS, make_certificate
from processes import free_port

from app import PREFIX, healthcheck


@contextmanager
def serve_health(status: HTTPStatus, tls: TLS | None = None, host: str = "127.0.0.1") -> Iterator[int]:
    """Run a server and yield its port. It responds to /health with the given status, and to other paths with 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == f"{PREFIX}/health" else HTTPStatus.NOT_FOUND)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Do not log requests."""

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    with Server((host, 0), Handler) as server:
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.certfile, tls.keyfile)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_status_200_is_healthy(clean_environment: dict[str, str]) -> None:
    with serve_health(HTTPStatus.OK) as port:
        command = [sys.executable, "-m", "app.healthcheck"]
        result = subprocess.run(command, env=clean_environment | {"PORT": str(port)}, check=False)

    assert result.returncode == 0


def test_ipv6_address_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_health(HTTPStatus.OK, host="::1") as port:
        monkeypatch.setenv("HOST", "::1")
        monkeypatch.setenv("PORT", str(port))

        healthcheck.main()


def test_https_is_used_with_a_certificate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tls = make_certificate(tmp_path)
    with serve_health(HTTPStatus.OK, tls) as port:
        monkeypatch.setenv("PORT", str(port))
        monkeypatch.setenv("SSL_CERTFILE", str(tls.certfile))

        healthcheck.main()


def test_other_status_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_health(HTTPStatus.SERVICE_UNAVAILABLE) as port:
        monkeypatch.setenv("PORT", str(port))

        with pytest.raises(SystemExit, match=f"^{PREFIX}/health responds 503$"):
            healthcheck.main()


def test_no_response_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", str(free_port()))

    with pytest.raises(SystemExit, match=f"^{PREFIX}/health does not respond: .*Connection refused"):
        healthcheck.main()
