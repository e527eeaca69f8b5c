"""Start containers and Compose projects with the Docker CLI, and remove them afterwards."""

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from processes import TIMEOUT

from app import PREFIX

COMMAND_TIMEOUT = 1800  # seconds per command, because one command runs the test suite in a container for many minutes
LOG_TAIL = 100  # number of lines of any level to print from the end of a log


def run_docker(*arguments: str | Path, **environment: str) -> str:
    """Run a docker command, and return its standard output. If the command fails, fail the test and show all output."""
    result = subprocess.run(
        ["docker", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_TIMEOUT,
        env=os.environ | environment,
    )
    if result.returncode:
        pytest.fail(f"docker {' '.join(map(str, arguments))}\n{result.stdout}{result.stderr}", pytrace=False)
    return result.stdout.strip()


@contextlib.contextmanager
def follow_docker(*arguments: str) -> Iterator[Iterator[str]]:
    """Run a docker command such as `logs --follow`. Yield an iterator over the lines of its output.

    The iterator ends when the command exits, at the latest after TIMEOUT seconds.
    """
    command = ["docker", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        timer = threading.Timer(TIMEOUT, process.kill)
        timer.start()
        try:
            yield (line.rstrip("\n") for line in process.stdout)
        finally:
            timer.cancel()
            process.kill()


class Container:
    """A container that has been started. It may have exited since."""

    def __init__(self, name: str) -> None:
        self.name = name

    def inspect(self, template: str) -> str:
        """Return the result of `docker inspect --format`."""
        return run_docker("inspect", "--format", template, self.name)

    @property
    def exit_code(self) -> int:
        return int(self.inspect("{{.State.ExitCode}}"))

    @property
    def url(self) -> str:
        """The URL of the API, using the host port on which the container's port 8000 is published."""
        return f"http://{run_docker('port', self.name, '8000/tcp').splitlines()[0]}{PREFIX}"

    @property
    def ip(self) -> str:
        """The container's IP address. A published port would accept connections even if the container refuses them."""
        return self.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")

    @property
    def log(self) -> str:
        """The container's output so far, with standard output and standard error combined."""
        command = ["docker", "logs", self.name]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout

    @property
    def log_lines(self) -> list[dict[str, Any]]:
        """The parsed log lines. Each line must be a JSON object."""
        return json_lines(self.log)

    @property
    def log_levels(self) -> set[str]:
        return {line["level"] for line in self.log_lines}

    def messages(self, level: str) -> list[str]:
        """Return the messages logged at this level."""
        return [line["event"] for line in self.log_lines if line["level"] == level]

    @property
    def processes(self) -> list[str]:
        """One line for each process, with the process id on the host, the user id and the command."""
        return run_docker("top", self.name, "-eo", "pid,uid,args").splitlines()[1:]

    def wait_for_log(self, text: str, times: int = 1) -> None:
        """Wait until the log contains `text` at least `times` times."""
        found = 0
        with follow_docker("logs", "--follow", self.name) as lines:
            for line in lines:
                found += line.count(text)
                if found >= times:
                    return
        pytest.fail(f"{text!r} is {found} times in the log, not {times} times:\n{self.log}")

    def wait_until_healthy(self) -> "Container":
        """Wait until the container's health check succeeds."""
        filters = [f"--filter={condition}" for condition in (f"container={self.name}", "event=health_status")]
        started_at = self.inspect("{{.State.StartedAt}}")  # ignore earlier runs of the container
        with follow_docker(
            "events", f"--since={started_at}", *filters, "--filter=event=die", "--format={{.Action}}"
        ) as events:
            for event in events:
                if event == "health_status: healthy":
                    return self
                if event == "die":
                    break
        pytest.fail(f"{self.name} does not become healthy:\n{self.log}")

    def send_signal(self, name: str) -> None:
        """Send a signal to process 1, which is gunicorn's master."""
        run_docker("kill", "--signal", name, self.name)

    def stop(self, seconds: int = 10) -> None:
        """Send the image's stop signal (SIGTERM by default), and SIGKILL if it still runs after `seconds`."""
        run_docker("stop", "--time", str(seconds), self.name)

    def start(self) -> "Container":
        """Start the container again."""
        run_docker("start", self.name)
        return self

    def wait_for_exit(self) -> int:
        """Wait until the container exits and return its exit code."""
        command = ["docker", "wait", self.name]
        return int(subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT).stdout)

    def execute(self, *command: str) -> str:
        """Run a command inside the container, and return its output."""
        return run_docker("exec", self.name, *command)


@contextlib.contextmanager
def run_container(image: str, *options: str | Path, command: Sequence[str] = ()) -> Iterator[Container]:
    """Run a container in the background. When the `with` block ends, print its shortened log and remove the container.

    pytest shows the log if the test fails.
    """
    container = Container(f"test-{uuid4().hex}")
    run_docker("run", "--detach", "--name", container.name, *options, image, *command)
    try:
        yield container
    finally:
        print(f"--- log of {container.name}\n{shorten_log(container.log)}")  # noqa: T201  pytest shows it
        run_docker("rm", "--force", "--volumes", container.name)


class Compose:
    """A Compose project with a unique name. Its environment variables set, for example, the published ports."""

    def __init__(self, file: Path, variables: dict[str, str]) -> None:
        self.file = file
        self.variables = variables
        self.name = f"test-{uuid4().hex}"

    def __call__(self, *arguments: str) -> str:
        """Run a docker compose command for this project, and return its output."""
        return run_docker("compose", "--project-name", self.name, "--file", self.file, *arguments, **self.variables)

    def run(self, script: str, **variables: str) -> str:
        """In the project's directory, run commands from the documentation and return their output.

        `variables` are added to the commands' environment.
        """
        environment = {**os.environ, **self.variables, **variables, "COMPOSE_PROJECT_NAME": self.name}
        result = subprocess.run(
            ["bash", "-euc", script],
            cwd=self.file.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=COMMAND_TIMEOUT,
        )
        assert result.returncode == 0, f"$ {script}\n{result.stdout}"
        return result.stdout

    def container(self, service: str) -> Container:
        """Return the service's only container, even if it has exited."""
        return Container(self("ps", "--all", "--quiet", service))

    @property
    def url(self) -> str:
        """The URL of the API, using the published port of `web`."""
        return f"http://{self('port', 'web', '8000')}{PREFIX}"


@contextlib.contextmanager
def compose_project(file: Path, **variables: str) -> Iterator[Compose]:
    """Yield a project for the caller to start.

    When the `with` block ends, print the project's shortened logs and remove everything that it created.
    """
    compose = Compose(file, variables)
    try:
        yield compose
    finally:
        print(f"--- logs of {compose.name}\n{shorten_log(compose('logs', '--no-color'))}")  # noqa: T201  pytest shows it
        compose("down", "--volumes", "--remove-orphans", "--rmi", "local")


def shorten_log(log: str) -> str:
    """Return the last lines of a log, and all earlier lines except those at level `info`.

    Under load, the last lines are about successful requests, and the cause of a failure is often further up.
    """
    lines = log.splitlines()
    important = [line for line in lines[:-LOG_TAIL] if '"level": "info"' not in line]
    return "\n".join(important + lines[-LOG_TAIL:])


def json_lines(log: str) -> list[dict[str, Any]]:
    """Parse a log in which each line must be a JSON object."""
    return [json.loads(line) for line in log.splitlines()]
