"""An unhandled exception is logged once, by the server, with its traceback and request id."""

import json
from pathlib import Path

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


BROKEN_MODULES = pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("import no_such_module", "ModuleNotFoundError", "No module named 'no_such_module'"),
        ("def incomplete(:", "SyntaxError", "invalid syntax"),
    ],
)


@BROKEN_MODULES
def test_error_in_own_module_on_a_terminal_has_pythons_traceback_format(
    gunicorn: Start, tmp_path: Path, code: str, error: str, message: str
) -> None:
    (tmp_path / "broken.py").write_text(code)

    server = gunicorn("broken:app", f"--config={GUNICORN_CONF}", LOG_FORMAT="console")  # the default on a terminal

    assert server.wait() == 1
    assert "\nTraceback (most recent call last):\n" in server.log
    assert server.log.splitlines()[-1] == f"{error}: {message}"


@BROKEN_MODULES
def test_error_in_own_module_in_production_is_one_json_line(
    gunicorn: Start, tmp_path: Path, code: str, error: str, message: str
) -> None:
    (tmp_path / "broken.py").write_text(code)

    server = gunicorn(
        "broken:app",
        f"--config={GUNICORN_CONF}",
        ENVIRONMENT="production",
        SECRET_KEY=SECRET_KEY,
        DATABASE_URL="postgresql://127.0.0.1:1/x",
        ALLOWED_HOSTS="*",
        MAIL="off",
    )

    assert server.wait() == 1
    line = json.loads(server.log)
    assert (line["level"], line["event"]) == ("critical", "uncaught exception")
    assert line["exception"][0]["exc_type"] == error
    assert line["exception"][0]["exc_value"].startswith(message)
