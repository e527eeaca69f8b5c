"""The README's application runs unchanged, and the README's tables agree with the code."""

import dataclasses
import inspect
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import hitless
import httpx
import pytest
from availability import cannot_run, package_index_problem
from processes import TIMEOUT, free_port, until

PACKAGE = Path(__file__).parents[1]
ADDRESS = "127.0.0.1:8000"  # as in the README
README = (PACKAGE / "README.md").read_text()


def table(head: str) -> dict[str, list[str]]:
    """Return the README's table whose first column has the title `head`, as a dict from names to the other cells."""
    (text,) = re.findall(rf"^\| {re.escape(head)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {name: cells for names, *cells in rows for name in re.findall(r"`(\w+)`", names)}


def describe(default: object) -> str:
    if isinstance(default, hitless.Limits):
        return "`Limits()`"
    return f"`{getattr(default, '__name__', default)}`"


def test_readme_lists_the_arguments_of_hooks() -> None:
    parameters = inspect.signature(hitless.hooks).parameters.values()

    rows = table("`hitless.hooks(…)`")

    assert {name: cells[0] for name, cells in rows.items()} == {
        each.name: describe(each.default) for each in parameters
    }


def test_readme_lists_the_limits() -> None:
    fields = dataclasses.fields(hitless.Limits)

    rows = table("`hitless.Limits(…)`")

    assert {name: cells[0] for name, cells in rows.items()} == {each.name: describe(each.default) for each in fields}


def test_readme_lists_every_public_name() -> None:
    assert {*table("also in `hitless`"), "hooks", "Limits"} == set(hitless.__all__)


def test_first_table_has_the_sums_of_the_second() -> None:
    sums: dict[str, list[int]] = {}
    for server, *cells in re.findall(
        r"^\| (.+) \| \d+ \| (.+/.+) \| (.+) \| (.+) \| ([\d,]+) \|$", README, re.MULTILINE
    ):
        numbers = [sum(map(int, cell.replace(",", "").split("/"))) for cell in cells]
        sums[server] = list(map(sum, zip(sums.get(server, [0] * 4), numbers, strict=True)))

    rows = re.findall(r"^\| (.+) \| (\d+) \| (\d+) \| (\d+) \| ([\d,]+) \|$", README.replace("**", ""), re.MULTILINE)

    assert {server: [int(cell.replace(",", "")) for cell in cells] for server, *cells in rows} == sums
    assert len(sums) == 4


@pytest.fixture
def address() -> str:
    """Return a host and a free port to use instead of the README's address."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def run(tmp_path: Path, address: str) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Write the README's files. Return a function that runs the README's commands and returns the server process."""
    if problem := package_index_problem():
        cannot_run(f"the README of hitless: {problem}")
    for name, text in re.findall(r"^`([\w.]+)`:\n\n```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text)
    (commands,) = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert ADDRESS in commands
    # Install this copy of hitless instead of the published one.
    lines = re.sub(r'"hitless @ .+?"', str(PACKAGE), commands.replace(ADDRESS, address)).splitlines()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)} | {
        name: value for name, value in os.environ.items() if name.startswith("PIP_")
    }
    servers = []

    def run() -> subprocess.Popen[bytes]:
        for line in lines[:-1]:
            subprocess.run(shlex.split(line), cwd=tmp_path, env=environment, check=True)
        with (tmp_path / "log").open("w") as log:
            servers.append(
                subprocess.Popen(shlex.split(lines[-1]), cwd=tmp_path, env=environment, stdout=log, stderr=log)
            )
        return servers[0]

    yield run
    for server in servers:
        server.kill()
        server.wait()
    print((tmp_path / "log").read_text())  # noqa: T201  pytest shows it if the test fails


@pytest.mark.copies
def test_application_in_the_readme_serves_reloads_and_stops(
    run: Callable[[], subprocess.Popen[bytes]], address: str, tmp_path: Path
) -> None:
    server = run()
    log = tmp_path / "log"
    until(lambda: log.read_text().count("Application startup complete.") == 2 or server.poll(), "both workers accept")
    with httpx.Client(base_url=f"http://{address}", timeout=TIMEOUT) as client:
        assert client.post("/echo", content=b"hello").text == "hello"

        os.kill(int((tmp_path / "gunicorn.pid").read_text()), signal.SIGHUP)
        responses = []

        def both_workers_are_replaced() -> bool:
            responses.append(client.get("/slow"))
            return log.read_text().count("Finished server process") == 2

        until(both_workers_are_replaced, "both workers are replaced")

        server.send_signal(signal.SIGTERM)
        assert client.get("/slow").text == "done\n"
    assert {response.text for response in responses} == {"done\n"}
    assert server.wait(TIMEOUT) == 0
