"""What a log line looks like, whoever wrote it."""

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.lifespan import State
from app.logging import configure_logging, log_config
from app.settings import LogSettings, Settings
from app.users.models import User
from app.users.service import list_users

URL = "postgresql+asyncpg://user:hunter2/@@db:5432/app"


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Puts back what `configure_logging` changes for the whole process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in log_config(settings())["loggers"]:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate, logger.level = [], True, logging.NOTSET


Environment = Literal["development", "test", "production"]


def settings(form: str | None = "json", level: str = "info", environment: Environment = "test") -> Settings:
    log = LogSettings.model_validate({"format": form, "level": level})
    return Settings.model_construct(environment=environment, log=log)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["gunicorn.error", "gunicorn.access", "uvicorn", "uvicorn.error", "a.library"])
def test_every_librarys_line_is_one_json_object(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings())

    logging.getLogger(name).info("%d\nlines", 2, extra={"colour": "blue", "color_message": "\x1b[1m2 lines"})

    line = json.loads(last_line(capsys))
    assert list(line) == ["timestamp", "level", "logger", "event", "colour"]
    assert line["timestamp"].endswith("Z")
    assert (line["level"], line["logger"], line["event"], line["colour"]) == ("info", name, "2\nlines", "blue")


def test_the_applications_own_lines_carry_their_fields_and_their_context(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings())

    with structlog.contextvars.bound_contextvars(request_id="abc"):
        structlog.stdlib.get_logger("app").info("request", status=200)

    line = json.loads(last_line(capsys))
    assert list(line)[:4] == ["timestamp", "level", "logger", "event"]
    assert (line["logger"], line["event"], line["status"], line["request_id"]) == ("app", "request", 200, "abc")


def test_uvicorns_own_access_line_is_not_written_twice(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings())

    logging.getLogger("uvicorn.access").info("GET / 200")

    assert capsys.readouterr().err == ""
    assert not logging.getLogger("uvicorn.access").hasHandlers()  # so that Uvicorn does not even format it


def test_a_warning_goes_to_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure_logging(settings())
        warnings.warn("mind the step", UserWarning, stacklevel=1)

    line = json.loads(last_line(capsys))
    assert line["level"] == "warning"
    assert "mind the step" in line["event"]


def test_what_is_below_the_level_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings(level="warning"))

    structlog.stdlib.get_logger("app").info("quiet")
    logging.getLogger("gunicorn.error").info("quiet")

    assert capsys.readouterr().err == ""


def fail() -> None:
    password = "a secret"  # noqa: F841  it is to be seen that nobody sees it
    raise ValueError(f"cannot connect to {URL}")


def test_a_traceback_is_data_without_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings())

    try:
        fail()
    except ValueError:
        structlog.stdlib.get_logger("app").exception("broken")

    shown = last_line(capsys)
    (exception,) = json.loads(shown)["exception"]
    assert exception["exc_type"] == "ValueError"
    assert [frame["name"] for frame in exception["frames"]][-1] == "fail"
    assert "a secret" not in shown


@pytest.mark.parametrize("form", ["json", "console"])
def test_passwords_in_urls_are_masked_in_messages_fields_and_tracebacks(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(settings(form))

    try:
        fail()
    except ValueError:
        logging.getLogger("a.library").exception("no answer from %s", URL, extra={"url": URL})

    shown = capsys.readouterr().err
    assert "hunter2" not in shown
    assert shown.count("postgresql+asyncpg://user:***@db:5432/app") >= 3


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_row_that_breaks_a_constraint_is_not_shown(
    form: str, session: AsyncSession, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(settings(form))
    session.add(User(email="ANN@example.com", full_name='"Ann"', password_hash="secret-hash"))

    try:
        await session.flush()
    except IntegrityError:
        structlog.stdlib.get_logger("app").exception("broken", step=3)

    shown = capsys.readouterr().err
    assert "ck_users_email_lower_case" in shown
    assert "ANN@" not in shown
    assert "secret-hash" not in shown
    assert form == "console" or json.loads(shown)["step"] == 3


@pytest.mark.parametrize("form", ["json", "console"])
async def test_what_was_searched_for_is_not_shown(
    form: str, state: State, session: AsyncSession, capsys: pytest.CaptureFixture[str]
) -> None:
    searched = "ann's@example.com"
    await session.execute(text("ALTER TABLE users RENAME TO people"))
    await session.commit()
    configure_logging(settings(form))

    try:
        await list_users(state["reader"], limit=1, before=None, search=searched, is_active=None)
    except DBAPIError:
        structlog.stdlib.get_logger("app").exception("broken")
    finally:
        await session.execute(text("ALTER TABLE people RENAME TO users"))
        await session.commit()

    shown = capsys.readouterr().err
    assert "FROM users" in shown
    assert "@example.com" not in shown


def test_on_the_console_a_traceback_is_the_usual_one(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings("console"))

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
    ("environment", "on_a_terminal", "form", "is_json"),
    [
        ("development", True, None, False),
        ("development", False, None, True),
        ("production", True, None, True),
        ("production", True, "console", False),
        ("development", True, "json", True),
    ],
)
def test_json_is_for_machines_and_the_console_for_people(
    environment: Environment, on_a_terminal: bool, form: str | None, is_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_a_terminal:
        monkeypatch.setattr(sys, "stderr", Terminal())
    configure_logging(settings(form, environment=environment))

    record = logging.LogRecord("app", logging.INFO, "", 0, "hello", None, None)
    line = logging.getLogger().handlers[0].format(record)

    assert line.startswith("{") == is_json
