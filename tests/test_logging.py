"""Log lines of all libraries have the same format and contain no secrets."""

import asyncio
import json
import logging
import sys
import warnings
from dataclasses import fields
from typing import Any

import httpx
import pytest
import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.lifespan import State
from app.logging import configure_logging
from app.settings import Settings
from app.users.models import User, UserRecord
from app.users.service import list_users

URL = "postgresql+asyncpg://user:hunter2/@@db:5432/app"


pytestmark = pytest.mark.usefixtures("restore_logging")


def make_settings(**values: Any) -> Settings:  # noqa: ANN401  settings have different types
    return Settings.model_construct(**{"environment": "test", "log_format": "json", "log_level": "info"} | values)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["gunicorn.error", "uvicorn", "uvicorn.error", "a.library"])
def test_line_of_a_library_is_one_json_object(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings())

    logging.getLogger(name).info("%d\nlines", 2, extra={"colour": "blue", "color_message": "\x1b[1m2 lines"})

    line = json.loads(last_line(capsys))
    assert list(line) == ["timestamp", "level", "logger", "event", "colour"]
    assert line["timestamp"].endswith("Z")
    assert (line["level"], line["logger"], line["event"], line["colour"]) == ("info", name, "2\nlines", "blue")


def test_line_of_the_application_has_its_fields_and_context(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings())

    with structlog.contextvars.bound_contextvars(request_id="abc"):
        structlog.stdlib.get_logger("app").info("request", status=200)

    line = json.loads(last_line(capsys))
    assert list(line)[:4] == ["timestamp", "level", "logger", "event"]
    assert (line["logger"], line["event"], line["status"], line["request_id"]) == ("app", "request", 200, "abc")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_logged_user_hides_the_password_hash(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings(log_format=log_format))
    values: dict[str, Any] = {field.name: f"the {field.name}" for field in fields(UserRecord)}

    structlog.stdlib.get_logger("app").info("logged", user=UserRecord(**values))

    line = last_line(capsys)
    assert "the email" in line
    assert "the password_hash" not in line
    assert "the security_stamp" not in line


@pytest.mark.parametrize("name", ["gunicorn.access", "uvicorn.access"])
def test_access_log_of_the_server_is_disabled(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings())

    logging.getLogger(name).info("GET / 200")

    assert capsys.readouterr().err == ""
    assert not logging.getLogger(name).hasHandlers()  # with a handler, Uvicorn would format the line


def test_warning_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # An earlier test may have called `captureWarnings`. pytest has undone the effect, but `logging` still considers
        # warnings captured, so that another call would do nothing.
        logging.captureWarnings(capture=False)
        configure_logging(make_settings())
        warnings.warn("deprecated", UserWarning, stacklevel=1)

    line = json.loads(last_line(capsys))
    assert line["level"] == "warning"
    assert "deprecated" in line["event"]


def test_line_below_the_log_level_is_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings(log_level="warning"))

    structlog.stdlib.get_logger("app").info("quiet")
    logging.getLogger("gunicorn.error").info("quiet")

    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("log_level", ["info", "debug"])
async def test_outgoing_request_logs_neither_url_nor_headers(
    log_level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\nSet-Cookie: id=a-secret\r\n\r\n")
        await writer.drain()
        writer.close()

    configure_logging(make_settings(log_level=log_level))
    async with await asyncio.start_server(respond, "127.0.0.1") as server, httpx.AsyncClient() as client:
        port = server.sockets[0].getsockname()[1]

        response = await client.get(f"http://127.0.0.1:{port}/hook?token=a-secret", headers={"X-Token": "a-secret"})

    assert response.headers["set-cookie"] == "id=a-secret"
    assert "a-secret" not in capsys.readouterr().err


def fail() -> None:
    password = "a secret"  # noqa: F841  local variables must not be logged
    raise ValueError(f"cannot connect to {URL}")


def test_traceback_is_structured_and_has_no_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings())

    try:
        fail()
    except ValueError:
        structlog.stdlib.get_logger("app").exception("broken")

    shown = last_line(capsys)
    (exception,) = json.loads(shown)["exception"]
    assert exception["exc_type"] == "ValueError"
    assert [frame["name"] for frame in exception["frames"]][-1] == "fail"
    assert "a secret" not in shown


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_passwords_in_urls_are_masked_everywhere(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings(log_format=log_format))

    try:
        fail()
    except ValueError:
        logging.getLogger("a.library").exception("no answer from %s", URL, extra={"url": URL})

    shown = capsys.readouterr().err
    assert "hunter2" not in shown
    assert shown.count("postgresql+asyncpg://user:***@db:5432/app") >= 3


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_row_that_violates_a_constraint_is_not_logged(
    log_format: str, session: AsyncSession, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(make_settings(log_format=log_format))
    session.add(User(email="ANN@example.com", full_name='"Ann"', password_hash="secret-hash"))

    try:
        await session.flush()
    except IntegrityError:
        structlog.stdlib.get_logger("app").exception("broken", step=3)

    shown = capsys.readouterr().err
    assert "ck_users_email_lower_case" in shown
    assert "ANN@" not in shown
    assert "secret-hash" not in shown
    assert log_format == "console" or json.loads(shown)["step"] == 3


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_search_term_is_not_logged(
    log_format: str, state: State, session: AsyncSession, capsys: pytest.CaptureFixture[str]
) -> None:
    search = "ann's@example.com"
    await session.execute(text("ALTER TABLE users RENAME TO people"))
    await session.commit()
    configure_logging(make_settings(log_format=log_format))

    try:
        await list_users(state["fast_reader"], limit=1, after=None, search=search, is_active=None)
    except DBAPIError:
        structlog.stdlib.get_logger("app").exception("broken")
    finally:
        await session.execute(text("ALTER TABLE people RENAME TO users"))
        await session.commit()

    shown = capsys.readouterr().err
    assert "FROM users" in shown
    assert "@example.com" not in shown


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"\nDETAIL:x", "seen"),
        (r"\\nDETAIL:x", "seen"),
        ("\nDETAIL: x", "seen"),
        ("LIKE 'a", "b' seen"),
        ("a://b:c", "d@e seen"),
        ("a://b:\\", "d@e seen"),
    ],
)
def test_clients_cannot_hide_fields_of_a_json_line_by_words_that_are_masked(
    first: str, second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(make_settings(log_format="json"))

    structlog.stdlib.get_logger("app").info("request", path=first, user_agent=second, step=3)

    line = json.loads(capsys.readouterr().err)
    assert line["path"] in {first, first[:1], ""}
    assert line["user_agent"] == second
    assert line["step"] == 3


def test_secrets_in_nested_values_are_masked(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings(log_format="json"))
    row = "rejected\nDETAIL:  Failing row contains (first line\nsecond line, ann@example.com)."
    error = repr(ValueError(row))

    structlog.stdlib.get_logger("app").info("broken", reasons=[f"1 x {error}", 2], row=row, urls={URL: None})

    shown = capsys.readouterr().err
    assert json.loads(shown)["reasons"] == ["1 x ValueError('rejected", 2]
    assert json.loads(shown)["row"] == "rejected"
    assert "hunter2" not in shown


def test_traceback_on_the_console_has_pythons_format(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings(log_format="console"))

    try:
        fail()
    except ValueError:
        structlog.stdlib.get_logger("app").exception("broken", step=3)

    shown = capsys.readouterr().err
    assert "broken" in shown.splitlines()[0]
    assert "step=3" in shown.splitlines()[0]
    assert "Traceback (most recent call last):" in shown
    assert "password = " not in shown


class Terminal:
    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        pass

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    ("environment", "is_terminal", "log_format", "is_json"),
    [
        ("development", True, None, False),
        ("development", False, None, True),
        ("production", True, None, True),
        ("production", True, "console", False),
        ("development", True, "json", True),
    ],
)
def test_default_format_is_console_only_on_a_terminal_in_development(
    environment: str, is_terminal: bool, log_format: str | None, is_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_terminal:
        monkeypatch.setattr(sys, "stderr", Terminal())
    configure_logging(make_settings(log_format=log_format, environment=environment))

    record = logging.LogRecord("app", logging.INFO, "", 0, "hello", None, None)
    line = logging.getLogger().handlers[0].format(record)

    assert line.startswith("{") == is_json


def test_masking_takes_time_proportional_to_the_length(capsys: pytest.CaptureFixture[str]) -> None:
    """On this input, a regular expression with quadratic running time would take many minutes."""
    configure_logging(make_settings(log_format="json"))

    logging.getLogger("a.library").warning("://a:" * 200_000)

    assert "://a:" * 200_000 in capsys.readouterr().err
