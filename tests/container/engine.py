"""Docker from its command line: containers and compose projects that clean up after themselves."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from processes import PATIENCE, until


def cli(*arguments: str | Path, **environment: str) -> str:
    """Runs a docker command and gives what it says on standard output; fails with all that it says."""
    result = subprocess.run(
        ["docker", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=os.environ | environment,
    )
    if result.returncode:
        pytest.fail(f"docker {' '.join(map(str, arguments))}\n{result.stdout}{result.stderr}", pytrace=False)
    return result.stdout.strip()


class Container:
    """A container that was started, and may have ended since."""

    def __init__(self, name: str) -> None:
        self.name = name

    def inspect(self, template: str) -> str:
        """What `docker inspect --format` says."""
        return cli("inspect", "--format", template, self.name)

    @property
    def url(self) -> str:
        """Where port 8000 can be reached from here."""
        return f"http://{cli('port', self.name, '8000/tcp').splitlines()[0]}"

    @property
    def ip(self) -> str:
        """Its own address. At a published port Docker's proxy accepts what the container itself would refuse."""
        return self.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")

    @property
    def log(self) -> str:
        """All that it wrote, to either stream."""
        command = ["docker", "logs", self.name]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout

    @property
    def processes(self) -> list[str]:
        """The processes as the host sees them: user and command."""
        return cli("top", self.name, "-eo", "pid,uid,args").splitlines()[1:]

    def is_healthy(self) -> "Container":
        """Waits until the engine says so."""

        def health() -> bool:
            state = json.loads(self.inspect("{{json .State}}"))
            assert state["Running"], f"it has ended:\n{self.log}"
            return bool(state["Health"]["Status"] == "healthy")

        until(health, f"{self.name} healthy")
        return self

    def signal(self, name: str) -> None:
        """Signals gunicorn's master, which is process 1."""
        cli("kill", "--signal", name, self.name)

    def stop(self, seconds: int = 10) -> None:
        """`docker stop`: SIGTERM, and SIGKILL after 10 seconds."""
        cli("stop", "--time", str(seconds), self.name)

    def start(self) -> "Container":
        """Starts it again, as it was."""
        cli("start", self.name)
        return self

    def ends(self) -> int:
        """Waits for the end and gives the exit code."""
        return int(
            subprocess.run(["docker", "wait", self.name], capture_output=True, check=True, timeout=PATIENCE).stdout
        )

    def execute(self, *command: str) -> str:
        """Runs a command inside."""
        return cli("exec", self.name, *command)


@contextmanager
def running(image: str, *options: str | Path, command: Sequence[str] = ()) -> Iterator[Container]:
    """Runs a container as `docker run` does; afterwards shows its log, for a test that fails, and removes it."""
    container = Container(f"test-{uuid4().hex}")
    cli("run", "--detach", "--name", container.name, *options, image, *command)
    try:
        yield container
    finally:
        print(f"--- log of {container.name}\n{container.log}")  # noqa: T201  pytest shows it where a test fails
        cli("rm", "--force", "--volumes", container.name)


class Compose:
    """A compose project of a file, under a name of its own and with variables that give it ports of its own."""

    def __init__(self, file: Path, variables: dict[str, str]) -> None:
        self.file = file
        self.variables = variables
        self.name = f"test-{uuid4().hex}"

    def __call__(self, *arguments: str) -> str:
        return cli("compose", "--project-name", self.name, "--file", self.file, *arguments, **self.variables)

    def container(self, service: str) -> Container:
        """The one container of a service, which may have ended."""
        return Container(self("ps", "--all", "--quiet", service))

    @property
    def url(self) -> str:
        """Where the web service can be reached from here."""
        return f"http://{self('port', 'web', '8000')}"


@contextmanager
def composed(file: Path, **variables: str) -> Iterator[Compose]:
    """Gives a project; afterwards shows its logs, for a test that fails, and removes all that it made."""
    compose = Compose(file, variables)
    try:
        yield compose
    finally:
        print(f"--- logs of {compose.name}\n{compose('logs', '--no-color')}")  # noqa: T201  as above
        compose("down", "--volumes", "--remove-orphans", "--rmi", "local")


def json_lines(log: str) -> list[dict[str, Any]]:
    """The lines of a log, each of which must be a JSON object."""
    return [json.loads(line) for line in log.splitlines()]
