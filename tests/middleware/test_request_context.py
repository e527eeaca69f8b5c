"""Request ids and the access log."""

import asyncio

import httpx
import jwt
import pytest
import structlog
from fastapi import BackgroundTasks

from app import PREFIX
from app.errors import Conflict
from tests.conftest import Service
from tests.people import sign_up


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/users/me"])
async def test_valid_request_id_is_kept(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path, headers={"X-Request-ID": "Order_66.part-2"})

    assert response.headers["x-request-id"] == "Order_66.part-2"


@pytest.mark.parametrize("request_id", ["", "x" * 129, "a b", "a\tb", "ä", '"', "<script>"])
async def test_invalid_request_id_is_replaced(client: httpx.AsyncClient, request_id: str) -> None:
    responses = [await client.get("/health", headers=[(b"X-Request-ID", request_id.encode())]) for _ in range(2)]

    ids = {response.headers["x-request-id"] for response in responses}
    assert len(ids) == 2
    assert all(len(new_id) == 32 for new_id in ids)


async def test_request_is_logged_in_one_line(client: httpx.AsyncClient, logs: list[structlog.typing.EventDict]) -> None:
    ann = await sign_up(client)
    logs.clear()

    response = await client.get(
        f"/users/{ann.id}?q=hunter2",
        headers=ann.auth | {"X-Request-ID": "abc", "User-Agent": "test", "Referer": "https://example.com/"},
    )

    (line,) = logs
    assert 0 < line.pop("duration_ms") < 60_000
    assert line == {
        "event": "request",
        "log_level": "info",
        "request_id": "abc",
        "method": "GET",
        "path": f"{PREFIX}/users/{ann.id}",
        "route": "/users/{user_id}",
        "http_version": "1.1",
        "status": 200,
        "bytes": len(response.content),
        "client": "127.0.0.1",
        "referer": "https://example.com/",
        "user_agent": "test",
        "user_id": ann.id,
        "login_id": jwt.decode(ann.access_token, options={"verify_signature": False})["sid"],
    }


async def test_path_cannot_inject_log_lines(client: httpx.AsyncClient, logs: list[structlog.typing.EventDict]) -> None:
    await client.get("/x%0A%22forged")

    assert logs[-1]["path"] == PREFIX + "/x%0A%22forged"
    assert logs[-1]["route"] is None


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_health_check_is_logged_at_debug(
    client: httpx.AsyncClient, logs: list[structlog.typing.EventDict], path: str
) -> None:
    await client.get(path)

    assert [entry["log_level"] for entry in logs] == ["debug"]


async def test_path_that_merely_starts_with_health_is_logged_at_info(
    service: Service, logs: list[structlog.typing.EventDict]
) -> None:
    @service.app.get(PREFIX + "/healthcare")
    async def healthcare() -> None: ...

    await service.client.get("/healthcare")

    assert [entry["log_level"] for entry in logs] == ["info"]


async def test_request_is_logged_when_the_response_is_sent_not_after_background_tasks(
    service: Service, logs: list[structlog.typing.EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.middleware.request_context.SLOW_BACKGROUND", 0)
    logged: list[str] = []

    async def background() -> None:
        logged.extend(entry["event"] for entry in logs)

    @service.app.get(PREFIX + "/test")
    async def respond(tasks: BackgroundTasks) -> None:
        tasks.add_task(background)

    response = await service.client.get("/test")

    assert logged == ["request"]
    assert [entry["event"] for entry in logs] == ["request", "background task"]
    assert {entry["request_id"] for entry in logs} == {response.headers["x-request-id"]}


async def test_failed_background_task_is_logged_and_raised_after_the_response(
    service: Service, logs: list[structlog.typing.EventDict]
) -> None:
    async def background() -> None:
        raise Conflict

    @service.app.get(PREFIX + "/test", status_code=202)
    async def respond(tasks: BackgroundTasks) -> None:
        tasks.add_task(background)

    with pytest.raises(RuntimeError) as error:  # Starlette raises this error, because the response has already started
        await service.client.get("/test", headers={"X-Request-ID": "my-request"})

    assert isinstance(error.value.__cause__, Conflict)
    assert [(entry["event"], entry["log_level"], entry["request_id"]) for entry in logs] == [
        ("request", "info", "my-request"),
        ("failed after the response", "warning", "my-request"),
    ]


async def test_background_task_cancelled_at_shutdown_is_logged(
    service: Service, logs: list[structlog.typing.EventDict]
) -> None:
    has_started = asyncio.Event()

    async def background() -> None:
        has_started.set()
        await asyncio.Event().wait()

    @service.app.get(PREFIX + "/test", status_code=202)
    async def respond(tasks: BackgroundTasks) -> None:
        tasks.add_task(background)

    request = asyncio.create_task(service.client.get("/test"))
    await has_started.wait()
    request.cancel()
    response = await request

    assert response.status_code == 202
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("request", "info"),
        ("cancelled after the response", "warning"),
    ]
    assert {entry["request_id"] for entry in logs} == {response.headers["x-request-id"]}
