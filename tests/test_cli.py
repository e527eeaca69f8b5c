"""The commands of `python -m app`, run as a person runs them."""

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.docs.openapi import build_openapi
from app.main import create_app
from app.settings import Settings
from app.users.models import User
from tests.conftest import Service
from tests.people import PASSWORD, log_in, register


class Command:
    """Runs `python -m app …` in an empty folder on a test's database."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "app", *arguments],
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


@pytest.fixture
def command(tmp_path: Path, clean_environment: dict[str, str], database_url: str) -> Command:
    return Command(tmp_path, clean_environment | {"DATABASE_URL": database_url})


@pytest.fixture
def command_without_database(tmp_path: Path, clean_environment: dict[str, str]) -> Command:
    return Command(tmp_path, clean_environment)


async def test_a_superuser_is_created_with_the_password_from_standard_input(
    command: Command, service: Service, session: AsyncSession
) -> None:
    result = command(
        "create-superuser", "--email", "Root@example.com", "--full-name", "Root", stdin=f"{PASSWORD}\nrest"
    )

    assert result.returncode == 0, result.stderr
    assert PASSWORD not in result.stdout + result.stderr
    user = await session.get_one(User, 1)
    assert (user.email, user.full_name, user.is_superuser, user.is_active) == ("root@example.com", "Root", True, True)
    await session.rollback()  # or the login would wait for SQLite's one lock
    assert (await log_in(service.client, "root@example.com")).status_code == 200


async def test_an_account_that_is_there_is_not_promoted(
    command: Command, service: Service, session: AsyncSession
) -> None:
    await register(service.client, "ann@example.com")

    result = command("create-superuser", "--email", "ANN@example.com", "--full-name", "Ann", stdin="another password\n")

    assert result.returncode == 1
    assert "has an account already" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (await session.get_one(User, 1)).is_superuser
    await session.rollback()  # or the login would wait for SQLite's one lock
    assert (await log_in(service.client)).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "stdin", "complaint"),
    [
        ([], "", "Without a terminal, give --email and --full-name"),
        (["--email", "root@example.com", "--full-name", "Root"], "short\n", "password: "),
        (["--email", "root@example.com", "--full-name", "Root"], "", "and the password on standard input"),
        (["--email", "nonsense", "--full-name", "Root"], f"{PASSWORD}\n", "email: "),
        (["--password", PASSWORD], "", "unrecognized arguments"),
    ],
)
def test_what_is_missing_or_wrong_is_said(
    command_without_database: Command, arguments: list[str], stdin: str, complaint: str
) -> None:
    result = command_without_database("create-superuser", *arguments, stdin=stdin)

    assert result.returncode in (1, 2)
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def _begin_on_terminal() -> None:
    """Makes Ctrl-C a signal, one that is not ignored, as it is in what a shell starts in the background."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def on_a_terminal(command: Command, *arguments: str, answers: dict[str, str]) -> tuple[int, str]:
    """Runs a command on a pseudo-terminal and types each answer when its question appears."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "app", *arguments],
        cwd=command.folder,
        env=command.environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=_begin_on_terminal,  # noqa: PLW1509  there are no threads
    )
    os.close(terminal)
    shown, deadline, questions = "", time.monotonic() + 60, list(answers)
    again_at = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not questions and time.monotonic() > again_at:  # a key that came too early is lost
            os.write(controller, f"{answers[list(answers)[-1]]}\n".encode())
            again_at += 10
        if select.select([controller], [], [], 0.1)[0]:
            try:
                chunk = os.read(controller, 4096)
            except OSError:  # the other end is closed: the process has ended
                break
            shown += chunk.decode()
        if questions and questions[0] in shown:
            os.write(controller, f"{answers[questions.pop(0)]}\n".encode())
    try:
        return process.wait(timeout=60), shown
    finally:
        os.close(controller)  # not before: it hangs up on a process that is still about to end


async def test_on_a_terminal_it_asks_for_what_it_is_not_given(command: Command, service: Service) -> None:
    status, shown = on_a_terminal(
        command,
        "create-superuser",
        answers={
            "Email: ": "root@example.com",
            "Full name: ": "Root",
            "Password: ": PASSWORD,
            "Password, once more: ": PASSWORD,
        },
    )

    assert status == 0, shown
    assert PASSWORD not in shown
    assert (await log_in(service.client, "root@example.com")).status_code == 200


def test_on_a_terminal_the_password_is_asked_for_twice(command_without_database: Command) -> None:
    status, shown = on_a_terminal(
        command_without_database,
        "create-superuser",
        "--email",
        "root@example.com",
        "--full-name",
        "Root",
        answers={"Password: ": PASSWORD, "Password, once more: ": "another"},
    )

    assert status == 1
    assert "The passwords differ." in shown


@pytest.mark.parametrize("key", [pytest.param("\x03", id="Ctrl-C"), pytest.param("\x04", id="Ctrl-D")])
def test_who_leaves_at_a_question_has_left(command_without_database: Command, key: str) -> None:
    status, shown = on_a_terminal(command_without_database, "create-superuser", answers={"Email: ": key})

    assert status == 130
    assert "Traceback" not in shown


def test_the_openapi_document_is_printed_and_nothing_else(
    command_without_database: Command, settings: Settings
) -> None:
    result = command_without_database("openapi")

    assert result.returncode == 0
    assert json.loads(result.stdout) == build_openapi(create_app(settings))


def test_a_migration_makes_the_embedded_database(command_without_database: Command) -> None:
    result = command_without_database("migrate")

    assert result.returncode == 0, result.stderr
    assert (command_without_database.folder / "data" / "app.db").is_file()


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"DATABASE_URL": "postgresql://user:hunter2@127.0.0.1:1/x"}, "The database at 127.0.0.1:1/x cannot be used"),
        ({"DATABASE_URL": "sqlite:////proc/none/app.db"}, "The SQLite database at /proc/none/app.db cannot be opened"),
        ({"DATABASE_URL": "sqlite:////proc/app.db"}, "The SQLite database at /proc/app.db cannot be opened"),
        ({"PORT": "x"}, "The settings are not valid:\n  PORT: "),
    ],
)
def test_what_stands_in_the_way_is_said_in_a_line(
    command_without_database: Command, variables: dict[str, str], complaint: str
) -> None:
    command_without_database.environment = command_without_database.environment | variables

    result = command_without_database("migrate")

    assert result.returncode == 1
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr
    assert "hunter2" not in result.stderr
