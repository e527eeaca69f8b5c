"""An unhandled exception is logged once, by the server, with its traceback and the id of its request."""

import json

import httpx
import pytest
from gunicorn_process import Start
from processes import TIMEOUT, until

from app import PREFIX
from tests.conftest import SECRET_KEY
from tests.server.conftest import GUNICORN_CONF

APP = "tests.server.app_with_faulty_route:app"


@pytest.mark.parametrize(("path", "status"), [("/crash", 500), ("/crash-after-response", 202)])
def test_unhandled_exception_is_logged_once_with_the_request_id(start_service: Start, path: str, status: int) -> None:
    server = start_service(APP, SECRET_KEY=SECRET_KEY)
    body = {"email": "ann@example.com", "password": "x"}

    response = httpx.post(
        server.url + PREFIX + path, json=body, headers={"X-Request-ID": "my-request"}, timeout=TIMEOUT
    )

    assert response.status_code == status
    until(lambda: '"error"' in server.log, "the exception is logged")
    lines = [json.loads(line) for line in server.log.splitlines() if "my-request" in line]
    warnings = [line["event"] for line in lines if line["level"] == "warning"]
    assert warnings == ["failed after the response"] * (status == 202)
    assert [line["level"] for line in lines].count("info") == 1
    (error,) = [line for line in lines if line["level"] == "error"]
    assert error["event"].strip() == "Exception in ASGI application"
    assert error["exception"][0]["exc_type"] == "RuntimeError"


def test_import_error_on_a_terminal_is_a_traceback_as_python_prints_it(gunicorn: Start) -> None:
    server = gunicorn("no_such_module:app", f"--config={GUNICORN_CONF}", LOG_FORMAT="console")  # as on a terminal

    assert server.wait() == 1
    assert "\nTraceback (most recent call last):\n" in server.log
    assert server.log.splitlines()[-1] == "ModuleNotFoundError: No module named 'no_such_module'"
