"""Mounted applications have the same errors, limits, headers and log lines as the main application."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app import PREFIX
from app.api import add_routers
from app.dependencies import SettingsDep
from app.errors import NotFound
from app.limiter import rate_limit
from app.settings import Settings
from app.users.dependencies import CurrentUser
from tests.conftest import Service, change, serve
from tests.people import sign_up


def mount_application(app: FastAPI) -> None:
    """Mount a sub-application on `app`, with routes for the tests."""
    reports = FastAPI(title="Reports")

    @reports.get("/me")
    async def me(user: CurrentUser) -> int:
        return user.id

    @reports.post("/{year}/imports", max_body_size=100)
    @rate_limit("login")
    async def add_import(year: int, data: list[int]) -> int:
        return year + sum(data)

    @reports.get("/outage")
    async def outage() -> None:
        raise PoolTimeoutError

    @reports.get("/settings")
    async def settings(settings: SettingsDep) -> bool:
        return settings.docs

    @reports.get("/bug")
    async def bug() -> None:
        raise RuntimeError

    @reports.get("/health")
    async def health() -> None: ...

    app.mount(PREFIX + "/mounted-in-a-test", reports)


def mount_own_handlers(app: FastAPI) -> None:
    """Mount a sub-application that has its own exception handlers."""
    own = FastAPI(openapi_url=None)

    @own.exception_handler(RequestValidationError)
    @own.exception_handler(RuntimeError)
    async def respond(_: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse(type(error).__name__, 400)

    @own.get("/{number}")
    async def fail(number: int) -> None:
        raise RuntimeError if number else NotFound

    app.mount(PREFIX + "/own-in-a-test", own)


@pytest.fixture
async def service(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Service]:
    (tmp_path / "files/users").mkdir(parents=True)
    (tmp_path / "files/users/me").write_text("a file")  # relative to the mount, its path is also the path of a route

    def add_all_routers(app: FastAPI) -> None:
        add_routers(app)
        mount_application(app)
        app.mount(PREFIX + "/files-in-a-test", StaticFiles(directory=tmp_path / "files"))
        mount_own_handlers(app)

    monkeypatch.setattr("app.main.add_routers", add_all_routers)
    async with serve(change(settings, rate_limit_login="2/minute"), raises=False) as service:
        yield service


async def test_route_knows_the_current_user(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)

    response = await client.get("/mounted-in-a-test/me", headers=ann.auth)

    assert (response.status_code, response.json()) == (200, ann.id)


async def test_route_knows_the_settings(client: httpx.AsyncClient, settings: Settings) -> None:
    assert (await client.get("/mounted-in-a-test/settings")).json() is settings.docs


async def test_bug_returns_500_in_the_format_of_all_others(
    client: httpx.AsyncClient, logs: list[structlog.typing.EventDict]
) -> None:
    response = await client.get("/mounted-in-a-test/bug")

    assert (response.status_code, response.json()["type"]) == (500, "internal_error")
    assert [entry["event"] for entry in logs] == ["request"]  # no error after the response


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/me", 401, "authentication_error"),
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/me", 405, "method_not_allowed"),
        ("POST", "/x/imports", 422, "validation_error"),
        ("GET", "/outage", 503, "service_unavailable"),
    ],
)
async def test_errors_have_the_format_of_all_others(
    client: httpx.AsyncClient, method: str, path: str, status: int, error: str
) -> None:
    response = await client.request(method, f"/mounted-in-a-test{path}", json=[] if method == "POST" else None)

    assert (response.status_code, response.json()["type"]) == (status, error)
    assert response.headers.get("allow") == ("GET, HEAD" if status == 405 else None)
    assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/own-in-a-test/x", 400, "RequestValidationError"),
        ("/own-in-a-test/1", 400, "RuntimeError"),
        ("/own-in-a-test/0", 404, '{"error":"Not found","type":"not_found"}'),
    ],
)
async def test_handlers_of_a_mounted_application_take_precedence(
    client: httpx.AsyncClient, path: str, status: int, text: str
) -> None:
    response = await client.get(path)

    assert (response.status_code, response.text) == (status, text)


async def test_mounted_files_have_the_headers_and_errors_of_routes(client: httpx.AsyncClient) -> None:
    found, missing, deleted = [
        await client.request(method, f"/files-in-a-test/users/{name}")
        for method, name in (("GET", "me"), ("GET", "you"), ("DELETE", "me"))
    ]

    assert (found.status_code, found.text) == (200, "a file")
    assert found.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert (missing.status_code, missing.json()["type"]) == (404, "not_found")
    assert (deleted.status_code, deleted.json()["type"]) == (405, "method_not_allowed")
    assert deleted.headers["allow"] == "GET, HEAD"


async def test_limits_of_a_route_apply(client: httpx.AsyncClient) -> None:
    too_large = await client.post("/mounted-in-a-test/2026/imports", content=b" " * 101)
    accepted = await client.post("/mounted-in-a-test/2026/imports", json=[1])
    too_many = await client.post("/mounted-in-a-test/2026/imports", json=[1])

    assert [response.status_code for response in (too_large, accepted, too_many)] == [413, 200, 429]
    assert accepted.headers["ratelimit-policy"] == '"login";q=2;w=60'


async def test_route_is_logged_with_the_path_of_the_mount(
    client: httpx.AsyncClient, logs: list[structlog.typing.EventDict]
) -> None:
    await client.get("/mounted-in-a-test/health")
    await client.head("/mounted-in-a-test/me")

    assert [(entry["log_level"], entry["route"]) for entry in logs] == [
        ("info", "/mounted-in-a-test/health"),
        ("info", "/mounted-in-a-test/me"),
    ]


async def test_documentation_loads_all_assets_from_the_service(client: httpx.AsyncClient) -> None:
    page = await client.get("/mounted-in-a-test/docs")

    assert "script-src 'self' 'sha256-" in page.headers["content-security-policy"]
    for asset in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert (await client.get(f"http://test{asset}")).status_code == 200, asset
