"""The commands of `python -m app`, with and without a terminal."""

import asyncio
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
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from processes import TIMEOUT
from sqlalchemy.ext.asyncio import AsyncSession

from app import cli
from app.docs.openapi import build_openapi
from app.main import create_app
from app.settings import Settings
from app.users.models import User
from tests.conftest import Service, make_settings
from tests.people import PASSWORD, TOO_LONG_IN_LOWER_CASE, Person, log_in, register, sign_up


class Result(NamedTuple):
    status: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: Settings) -> Run:
    """Return a function that runs an `app` command in the test process. A new process takes a second to start."""

    def run(*arguments: str, stdin: str = "", settings: Settings = settings) -> Result:
        monkeypatch.setattr(sys, "argv", ["app", *arguments])
        monkeypatch.setattr(sys, "stdin", StringIO(stdin))
        monkeypatch.setattr(cli, "settings", settings)
        status, message = 0, ""
        try:
            cli.main()
        except SystemExit as error:  # if the code is a string, Python prints it and exits with status 1
            status, message = (error.code, "") if isinstance(error.code, int) else (1, str(error.code))
        stdout, stderr = capsys.readouterr()
        return Result(status, stdout, stderr + message)

    return run


class CommandLine:
    """Runs `python -m app` in a new process, with the given working directory and environment variables."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = environment

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "app", *arguments],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )

    def run_on_terminal(self, *arguments: str, answers: dict[str, str]) -> tuple[int, str]:
        """Run a command on a pseudo-terminal, and enter each answer when its prompt appears.

        Returns:
            The exit status, and the terminal's output.
        """
        controller, terminal = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "app", *arguments],
            cwd=self.directory,
            env=self.environment,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509  there are no threads
        )
        os.close(terminal)
        last_answer = list(answers.values())[-1]
        shown, deadline, prompts = "", time.monotonic() + TIMEOUT, list(answers)
        retry_at = time.monotonic() + TIMEOUT / 2
        while time.monotonic() < deadline:
            # Send a control key again, because it may be lost if it arrives before the program waits for input. Text is
            # buffered, so it need not be sent again.
            if not prompts and not last_answer.isprintable() and time.monotonic() > retry_at:
                os.write(controller, f"{last_answer}\n".encode())
                retry_at = deadline
            if select.select([controller], [], [], 0.1)[0]:
                try:
                    chunk = os.read(controller, 4096)
                except OSError:  # the process has exited and closed its end of the terminal
                    break
                shown += chunk.decode()
            if prompts and prompts[0] in shown:
                os.write(controller, f"{answers[prompts.pop(0)]}\n".encode())
        try:
            return process.wait(timeout=TIMEOUT), shown
        finally:
            os.close(controller)  # closing it earlier would send SIGHUP to the process


def _take_terminal() -> None:
    """Make standard input the controlling terminal, and restore the default action of SIGINT.

    Shells may start background processes with SIGINT ignored, and child processes inherit this.
    """
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def command_line(tmp_path: Path, clean_environment: dict[str, str], database_url: str) -> CommandLine:
    """Run commands on the test's database."""
    return CommandLine(tmp_path, clean_environment | {"DATABASE_URL": database_url})


@pytest.fixture
def default_command_line(tmp_path: Path, clean_environment: dict[str, str]) -> CommandLine:
    """Run commands with the default settings."""
    return CommandLine(tmp_path, dict(clean_environment))


async def test_create_superuser_reads_the_password_from_standard_input(
    run: Run, service: Service, session: AsyncSession
) -> None:
    result = await asyncio.to_thread(
        run, "create-superuser", "--email", "Root@example.com", "--full-name", "Root", stdin=f"{PASSWORD}\nrest"
    )

    assert result.status == 0, result.stderr
    assert PASSWORD not in result.stdout + result.stderr
    user = await session.get_one(User, 1)
    assert (user.email, user.full_name, user.is_superuser, user.is_active) == ("root@example.com", "Root", True, True)
    await session.rollback()  # release SQLite's write lock, which the login needs
    assert (await log_in(service.client, "root@example.com")).status_code == 200


async def test_create_superuser_does_not_promote_an_existing_user(
    run: Run, service: Service, session: AsyncSession
) -> None:
    await register(service.client, "ann@example.com")

    result = await asyncio.to_thread(
        run, "create-superuser", "--email", "ANN@example.com", "--full-name", "Ann", stdin="another password\n"
    )

    assert result.status == 1
    assert "A user with this address already exists" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (await session.get_one(User, 1)).is_superuser
    await session.rollback()  # release SQLite's write lock, which the login needs
    assert (await log_in(service.client)).status_code == 200


async def test_set_password_changes_the_password_and_ends_all_logins(run: Run, service: Service) -> None:
    ann, bob = await sign_up(service.client), await sign_up(service.client, "bob@example.com")

    result = await asyncio.to_thread(run, "set-password", "Ann@example.com", stdin="another password\n")

    assert (result.status, result.stdout) == (
        0,
        "The password of ann@example.com has been changed, and the user is logged out everywhere.\n",
    )
    assert "another password" not in result.stdout + result.stderr
    assert (await log_in(service.client)).status_code == 401
    assert (await log_in(service.client, password="another password")).status_code == 200
    assert await logins_of(service.client, ann, bob) == {"ann@example.com": 401, "bob@example.com": 200}


async def test_end_logins_ends_all_logins_of_one_user(run: Run, service: Service) -> None:
    ann, bob = await sign_up(service.client), await sign_up(service.client, "bob@example.com")

    result = await asyncio.to_thread(run, "end-logins", "ann@example.com")

    assert (result.status, result.stdout) == (0, "ann@example.com is logged out everywhere.\n")
    assert await logins_of(service.client, ann, bob) == {"ann@example.com": 401, "bob@example.com": 200}
    assert (await log_in(service.client)).status_code == 200


async def logins_of(client: httpx.AsyncClient, *people: Person) -> dict[str, int]:
    """Return the status of each person's requests, keyed by email address.

    Requests with the access token and with the refresh token must have the same status.
    """
    statuses = {}
    for person in people:
        access = await client.get("/users/me", headers=person.auth)
        refresh = await client.post("/auth/refresh", json={"refresh_token": person.refresh_token})
        assert access.status_code == refresh.status_code
        statuses[person.email] = access.status_code
    return statuses


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["set-password", "unknown@example.com"], f"{PASSWORD}\n", "User not found"),
        (["set-password", "ann@example.com"], "short\n", "password: "),
        (["set-password", "ann@example.com"], "", "pass the password on standard input"),
        (["end-logins", "unknown@example.com"], "", "User not found"),
        (["end-logins", "nonsense"], "", "email: "),
    ],
)
def test_command_for_an_account_reports_problems_in_one_line(
    run: Run, arguments: list[str], stdin: str, message: str
) -> None:
    result = run(*arguments, stdin=stdin)

    assert result.status == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([], "", "Without a terminal, pass --email, --full-name"),
        (["--email", "root@example.com", "--full-name", "Root"], "short\n", "password: "),
        (["--email", "root@example.com", "--full-name", "Root"], "", "pass the password on standard input"),
        (["--email", "nonsense", "--full-name", "Root"], f"{PASSWORD}\n", "email: "),
        (["--email", TOO_LONG_IN_LOWER_CASE[0], "--full-name", "Root"], f"{PASSWORD}\n", "email: "),
        (["--password", PASSWORD], "", "unrecognized arguments"),
    ],
)
def test_invalid_arguments_are_reported_without_a_traceback(
    run: Run, arguments: list[str], stdin: str, message: str
) -> None:
    result = run("create-superuser", *arguments, stdin=stdin)

    assert result.status in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr


async def test_create_superuser_prompts_on_a_terminal(command_line: CommandLine, service: Service) -> None:
    status, shown = command_line.run_on_terminal(
        "create-superuser",
        answers={
            "Email: ": "root@example.com",
            "Full name: ": "Root",
            "Password: ": PASSWORD,
            "Repeat the password: ": PASSWORD,
        },
    )

    assert status == 0, shown
    assert PASSWORD not in shown
    assert (await log_in(service.client, "root@example.com")).status_code == 200


def test_passwords_that_do_not_match_are_rejected(default_command_line: CommandLine) -> None:
    status, shown = default_command_line.run_on_terminal(
        "create-superuser",
        "--email",
        "root@example.com",
        "--full-name",
        "Root",
        answers={"Password: ": PASSWORD, "Repeat the password: ": "another"},
    )

    assert status == 1
    assert "The passwords do not match." in shown


@pytest.mark.parametrize("key", [pytest.param("\x03", id="Ctrl-C"), pytest.param("\x04", id="Ctrl-D")])
def test_interrupted_prompt_exits_with_130(default_command_line: CommandLine, key: str) -> None:
    status, shown = default_command_line.run_on_terminal("create-superuser", answers={"Email: ": key})

    assert status == 130
    assert "Traceback" not in shown


def test_openapi_prints_only_the_document(default_command_line: CommandLine) -> None:
    result = default_command_line.run("openapi")

    assert result.returncode == 0
    assert not result.stderr  # no warnings, such as those that concern only servers
    assert json.loads(result.stdout) == build_openapi(create_app(make_settings(mail=True)))


def test_migrate_creates_the_default_database(default_command_line: CommandLine) -> None:
    result = default_command_line.run("migrate")

    assert result.returncode == 0, result.stderr
    assert (default_command_line.directory / "data" / "app.db").is_file()


def test_invalid_setting_prints_one_line(default_command_line: CommandLine) -> None:
    default_command_line.environment["PORT"] = "x"

    result = default_command_line.run("migrate")

    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert json.loads(line)["event"].startswith("The settings are not valid:\n  PORT: ")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://user:hunter2@127.0.0.1:1/x", "The database at 127.0.0.1:1/x cannot be used"),
        ("sqlite:////proc/none/app.db", "The SQLite database at /proc/none/app.db cannot be opened"),
        ("sqlite:////proc/app.db", "The SQLite database at /proc/app.db cannot be opened"),
    ],
)
def test_unusable_database_prints_one_line(run: Run, url: str, message: str) -> None:
    result = run("migrate", settings=make_settings(database_url=url))

    assert result.status == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert "hunter2" not in result.stderr
