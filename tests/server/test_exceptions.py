"""An unhandled exception is logged once, by the server, with its traceback and the id of its request."""

import json

import httpx
import pytest
from gunicorn_process import Start
from processes import PATIENCE, until

from app import PREFIX
from tests.conftest import SECRET_KEY

APP = "tests.server.app_with_faulty_route:app"


@pytest.mark.parametrize(("path", "status"), [("/crash", 500), ("/crash-after-response", 202)])
def test_unhandled_exception_is_logged_once_with_the_request_id(start_service: Start, path: str, status: int) -> None:
    server = start_service(APP, SECRET_KEY=SECRET_KEY)
    body = {"email": "ann@example.com", "password": "x"}

    response = httpx.post(
        server.url + PREFIX + path, json=body, headers={"X-Request-ID": "my-request"}, timeout=PATIENCE
    )

    assert response.status_code == status
    until(lambda: '"error"' in server.log, "the exception is logged")
    lines = [json.loads(line) for line in server.log.splitlines() if "my-request" in line]
    assert sorted(line["level"] for line in lines) == ["error", "info"]
    (error,) = [line for line in lines if line["level"] == "error"]
    assert error["event"].strip() == "Exception in ASGI application"
    assert error["exception"][0]["exc_type"] == "RuntimeError"
