"""Run the application on four servers. Print the table of their speed and lost requests for docs/performance.md.

    docker build -t fastapi-app .
    uv run python -m benchmarks.compare_servers

The benchmark needs Docker and wrk, and takes five minutes. All servers run at the same time, with two workers each, and
are measured in turn, so that any other load on the machine affects them equally.
"""

import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from benchmarks.servers import parse_image
from tests.container.engine import Container, run_container
from tests.container.load import load
from tests.container.service import make_targets, options

HEADS = [
    "server",
    "requests/s",
    "p99",
    "CPU per request",
    "lost by `max_requests`",
    "by SIGHUP, twice",
    "by `docker stop`",
    "slowest answer",
]
ROUNDS = 3
WRK_SECONDS, REPLACING_SECONDS, RELOADING_SECONDS = 4, 20, 6
NEVER, OFTEN = 0, 200
TICKS = 100  # clock ticks per second; /proc/<pid>/stat contains CPU times in clock ticks

# Options that are set neither here nor in `servers` have their default values.
GUNICORN = ["gunicorn", "app.main:app", "--bind=0.0.0.0:8000", "--workers=2", "--no-control-socket"]
UVICORN = ["uvicorn", "app.main:app", "--host=0.0.0.0", "--workers=2", "--no-access-log"]


def servers(max_requests: int) -> dict[str, list[str]]:
    """Map each server's name to its command. Workers are replaced after `max_requests` requests (0 for never)."""
    replacing = [f"--max-requests={max_requests}"]
    return {
        "gunicorn, our worker": ["gunicorn", "app.main:app", "--config=/app/gunicorn.conf.py", *replacing],
        "gunicorn, uvicorn-worker": [*GUNICORN, "--worker-class=uvicorn_worker.UvicornWorker", *replacing],
        "gunicorn, its `asgi` worker": [*GUNICORN, "--worker-class=asgi", *replacing],
        "`uvicorn --workers`": [*UVICORN, *([f"--limit-max-requests={max_requests}"] if max_requests else [])],
    }


def start(stack: ExitStack, image: str, command: list[str]) -> Container:
    """Start a server and wait until it responds."""
    settings = options(MAX_REQUESTS_JITTER="0", PYTHONPATH="/app")
    # Change the working directory, so that gunicorn uses gunicorn.conf.py only if the command names the file.
    return stack.enter_context(
        run_container(image, *settings, "--workdir=/tmp", command=tuple(command))
    ).wait_until_healthy()


class Speed(NamedTuple):
    """Requests per second, the 99th percentile of response times in ms, and the server's CPU time per request in ms."""

    rate: float
    p99: float
    cpu: float


def speed(container: Container) -> Speed:
    """Measure the server under maximum load, on a route that does not use the database."""
    cpu = cpu_seconds(container)
    command = ["wrk", "--threads=1", "--connections=16", f"--duration={WRK_SECONDS}", "--latency"]
    url = f"http://{container.ip}:8000/health/live"
    said = subprocess.run([*command, url], stdout=subprocess.PIPE, text=True, check=True).stdout  # noqa: S603  our own
    (rate,), ((number, unit),) = re.findall(r"Requests/sec: +(\S+)", said), re.findall(r"99% +([\d.]+)(\w+)", said)
    (answers,) = re.findall(r"(\d+) requests in", said)
    p99 = float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]
    return Speed(float(rate), p99, (cpu_seconds(container) - cpu) * 1000 / int(answers))


def cpu_seconds(container: Container) -> float:
    """Return the CPU time in seconds (user and system) that the running processes in the container have used so far.

    Reading this time takes hardly any CPU time itself.
    """
    stats = container.execute("sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null; true").splitlines()
    fields = [line.rpartition(")")[2].split() for line in stats]
    return sum(int(field[11]) + int(field[12]) for field in fields) / TICKS


def losses(container: Container) -> list[str]:
    """Count the requests that are lost with `max_requests` alone, during two reloads by SIGHUP, and by `docker stop`.

    Return the three counts in this order, each in the form "2 of 1000", and then the longest response time in seconds.
    """
    reports = []
    for step in (_replace, _reload, _stop):
        with load(*make_targets(container)) as report:
            step(container)
        reports.append(report)
    lost = [f"{len(report.failures)} of {len(report.failures) + report.responses}" for report in reports]
    return [*lost, f"{max(report.slowest for report in reports):.1f} s"]


def _replace(_: Container) -> None:
    time.sleep(REPLACING_SECONDS)


def _reload(container: Container) -> None:
    for _ in range(2):
        container.send_signal("HUP")
        time.sleep(RELOADING_SECONDS)


def _stop(container: Container) -> None:
    time.sleep(2)
    container.stop()


def main(image: str) -> str:
    """Take all measurements. Return a report with the date, versions, machine details, and a table of the results."""
    with ExitStack() as stack:
        containers = {name: start(stack, image, command) for name, command in servers(NEVER).items()}
        rounds = [{name: speed(container) for name, container in containers.items()} for _ in range(ROUNDS)]
        versions = next(iter(containers.values())).execute("python", "-c", VERSIONS)
    lost = {}
    for name, command in servers(OFTEN).items():
        with ExitStack() as stack:
            lost[name] = losses(start(stack, image, command))
    speeds = {name: Speed(*map(statistics.median, zip(*(each[name] for each in rounds), strict=True))) for name in lost}
    return f"{datetime.now(UTC):%d %B %Y}; {versions}; {machine()}.\n\n{table(speeds, lost)}"


def table(speeds: Mapping[str, Speed], lost: Mapping[str, list[str]]) -> str:
    """Return the results as a Markdown table."""
    rows = [
        [name, f"{speed.rate:,.0f}", f"{speed.p99:.1f} ms", f"{speed.cpu:.2f} ms", *lost[name]]
        for name, speed in speeds.items()
    ]
    head, *lines = (f"| {' | '.join(row)} |\n" for row in (HEADS, *rows))
    return "".join([head, "|---" * len(HEADS), "|\n", *lines])


VERSIONS = """
import platform
from importlib.metadata import version
print(f"Python {platform.python_version()}", *(f"{it} {version(it)}" for it in ("gunicorn", "uvicorn")), sep=", ")
"""


def machine() -> str:
    """Describe the machine in one line."""
    cpus = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{len(cpus)} x {cpus[0]}, {platform.system()} {platform.release().split('-')[0]}, which wrk shares"


if __name__ == "__main__":
    image = parse_image("benchmarks.compare_servers", __doc__)
    with redirect_stdout(None):  # suppress the logs, which are printed when containers are removed
        result = main(image)
    sys.stdout.write(result)
