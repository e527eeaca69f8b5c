"""The probe that the image's HEALTHCHECK runs."""

import http.server
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import pytest
from certificates import TLS

from app import healthcheck


@contextmanager
def answering(status: HTTPStatus, tls: TLS | None = None) -> Iterator[int]:
    """Serves one answer at /health, and 404 elsewhere, on the port that it gives."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else HTTPStatus.NOT_FOUND)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keeps quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.certfile, tls.keyfile)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORT", raising=False)
    monkeypatch.delenv("SSL_CERTFILE", raising=False)


def test_an_answer_of_200_is_healthy(clean_environment: dict[str, str]) -> None:
    with answering(HTTPStatus.OK) as port:
        command = [sys.executable, "-m", "app.healthcheck"]
        result = subprocess.run(command, env=clean_environment | {"PORT": str(port)}, check=False)

    assert result.returncode == 0


def test_with_a_certificate_it_asks_in_https(monkeypatch: pytest.MonkeyPatch, tls: TLS) -> None:
    with answering(HTTPStatus.OK, tls) as port:
        monkeypatch.setenv("PORT", str(port))
        monkeypatch.setenv("SSL_CERTFILE", str(tls.certfile))

        healthcheck.main()


def test_any_other_answer_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(HTTPStatus.SERVICE_UNAVAILABLE) as port:
        monkeypatch.setenv("PORT", str(port))

        with pytest.raises(SystemExit, match=r"^/health answers 503$"):
            healthcheck.main()


def test_no_answer_is_not_healthy(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("PORT", str(port))

    with pytest.raises(SystemExit, match=r"^/health does not answer: .*Connection refused"):
        healthcheck.main()
