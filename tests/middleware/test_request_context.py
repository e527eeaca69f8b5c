"""Each request has an id and a line in the access log."""

import httpx
import pytest
import structlog

from tests.conftest import Service
from tests.people import sign_up


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/users/me"])
async def test_a_good_request_id_is_kept(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path, headers={"X-Request-ID": "Order_66.part-2"})

    assert response.headers["x-request-id"] == "Order_66.part-2"


@pytest.mark.parametrize("bad", ["", "x" * 129, "a b", "a\tb", "ä", '"', "<script>"])
async def test_any_other_is_replaced(client: httpx.AsyncClient, bad: str) -> None:
    responses = [await client.get("/health", headers=[(b"X-Request-ID", bad.encode())]) for _ in range(2)]

    ids = {response.headers["x-request-id"] for response in responses}
    assert len(ids) == 2
    assert all(len(request_id) == 32 for request_id in ids)


async def test_a_request_is_one_line_in_the_log(
    client: httpx.AsyncClient, logs: list[structlog.typing.EventDict]
) -> None:
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
        "path": f"/users/{ann.id}",
        "route": "/users/{user_id}",
        "http_version": "1.1",
        "status": 200,
        "bytes": len(response.content),
        "client": "127.0.0.1",
        "referer": "https://example.com/",
        "user_agent": "test",
    }


async def test_a_path_cannot_forge_a_line(client: httpx.AsyncClient, logs: list[structlog.typing.EventDict]) -> None:
    await client.get("/x%0A%22forged")

    assert logs[-1]["path"] == "/x%0A%22forged"
    assert logs[-1]["route"] is None


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_a_probe_is_not_worth_a_line(
    client: httpx.AsyncClient, logs: list[structlog.typing.EventDict], path: str
) -> None:
    await client.get(path)

    assert [entry["log_level"] for entry in logs] == ["debug"]


async def test_what_only_sounds_like_a_probe_is(service: Service, logs: list[structlog.typing.EventDict]) -> None:
    @service.app.get("/healthcare")
    async def healthcare() -> None: ...

    await service.client.get("/healthcare")

    assert [entry["log_level"] for entry in logs] == ["info"]
