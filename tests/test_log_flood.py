"""Clients can neither flood the log nor write control characters to a terminal that shows it."""

import asyncio
import json
import logging

import httpx
import pytest
import structlog

from app.logging import MAX_FIELD, RefusalLog, configure_logging, shorten
from app.settings import Settings
from tests.conftest import change, make_settings, serve

pytestmark = pytest.mark.usefixtures("restore_logging")

NOT_LOGGED = "some requests outside of rate limits were not logged"


@pytest.mark.parametrize(
    "text", ["", "short", "x" * 600, "\xff" * 16_000, "\0" * 600, "a\xff" * 300, "\U0001f600" * 200, "\U0001f600" * 85]
)
def test_written_field_is_at_most_512_characters(text: str) -> None:
    written = json.dumps(shorten(text))

    assert len(written) <= MAX_FIELD
    assert text.startswith(shorten(text))
    assert len(shorten(text)) == len(text) or len(written) > MAX_FIELD - 12


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/users/me", {"Host": "evil.example"}),
        ("GET", "/health/nowhere", {}),
        ("OPTIONS", "/users/me", {"Origin": "https://example.com", "Access-Control-Request-Method": "GET"}),
    ],
)
async def test_requests_without_a_rate_limit_do_not_fill_the_log(  # noqa: PLR0913, PLR0917  fixtures and parameters
    settings: Settings,
    logs: list[structlog.typing.EventDict],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    headers: dict[str, str],
) -> None:
    monkeypatch.setattr("app.middleware.request_context.refusal_log", RefusalLog(lines_per_second=10))
    monkeypatch.setattr("app.logging.monotonic", lambda: 1000.0)
    async with serve(change(settings, allowed_hosts=["test"], cors_origins=["https://example.com"])) as service:
        for _ in range(20):
            await service.client.request(method, path, headers=headers)

    assert len([entry for entry in logs if entry["event"] == "request"]) == 10


async def test_long_path_and_headers_are_cut_in_access_log(
    client: httpx.AsyncClient, logs: list[structlog.typing.EventDict]
) -> None:
    long = b"\xff" * 16_000

    await client.get(f"/{'x' * 10_000}", headers={b"user-agent": long, b"referer": long})

    line = logs[-1]
    assert all(len(json.dumps(line[name])) <= MAX_FIELD for name in ("path", "user_agent", "referer"))


async def test_only_ten_refusals_per_second_are_logged_and_the_others_are_counted(
    settings: Settings, logs: list[structlog.typing.EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("app.middleware.request_context.refusal_log", RefusalLog(lines_per_second=10))
    monkeypatch.setattr("app.logging.monotonic", lambda: now)
    async with serve(change(settings, rate_limit="1/minute")) as service:
        for _ in range(31):
            await service.client.get("/users/me")
        refused = [entry for entry in logs if entry.get("status") == 429]
        now += 1
        for _ in range(5):
            await service.client.get("/users/me")
        later = [entry for entry in logs if entry.get("status") == 429]
        async with asyncio.timeout(60):
            while not (counted := [entry for entry in logs if entry["event"] == NOT_LOGGED]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    assert len(refused) == 10
    assert len(later) == 15
    assert [entry["number"] for entry in counted] == [20]
    assert "request_id" not in counted[0]


async def test_malformed_request_is_logged_once(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings(log_format="json"))

    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("hitless").info("request rejected")
    logging.getLogger("uvicorn.error").warning("another line")

    assert [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines()] == [
        "request rejected",
        "another line",
    ]


def test_console_escapes_control_characters(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings(log_format="console"))

    structlog.stdlib.get_logger("test").info("a\x1b[31m\nb", name="\x9b31m\x07")

    written = capfd.readouterr().err
    assert "a\\x1b[31m\nb" in written
    assert "\\x9b31m\\x07" in written
    assert not {"\x1b", "\x9b", "\x07"} & set(written)
