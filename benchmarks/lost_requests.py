"""Count how many requests four servers lose while workers are replaced, and print the table for hitless's README.

    uv run python -m benchmarks.lost_requests

Each server runs two workers and the same application. Three groups of eight clients share the load. The first group
reuses its connections without checking whether the server has closed them. The second reuses them, but checks first.
The third opens a new connection for each request. No client retries. The benchmark takes about eight minutes.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from processes import free_port, get_or_none, until

RATES = (80, 300, 800)  # requests per second of all clients together
EVENTS = ("max_requests", "SIGHUP", "stop")
CLIENTS = 8  # in each group
MAX_REQUESTS = 200
RESPONSE_TIMEOUT = 20  # seconds
REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"

APPLICATION = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for state in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{state}.complete"})
        return
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})
"""
CONFIGURATION = """
import hitless
worker_class = "hitless.Worker"
on_starting, when_ready, pre_fork, child_exit = hitless.hooks()
"""
GUNICORN = ["gunicorn", "application:app", "--workers=2", "--no-control-socket"]
COMMANDS = {
    "`hitless.Worker`": [*GUNICORN, "--config=conf.py"],
    "`uvicorn_worker.UvicornWorker`": [*GUNICORN, "--worker-class=uvicorn_worker.UvicornWorker"],
    "gunicorn's `asgi` worker": [*GUNICORN, "--worker-class=asgi"],
    "`uvicorn --workers`": ["uvicorn", "application:app", "--workers=2", "--no-access-log"],
}


@dataclass
class Group:
    """A group of clients that treat connections in the same way, and how many requests they have sent and lost."""

    keeps: bool
    notices: bool
    sent: int = 0
    lost: int = 0


def make_groups() -> list[Group]:
    return [Group(keeps=True, notices=False), Group(keeps=True, notices=True), Group(keeps=False, notices=False)]


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def request(connection: Connection) -> bool:
    """Send a request, and return whether the connection can be used again.

    Raises:
        OSError, EOFError, TimeoutError: The request was lost: no complete response with status 200 arrived.
    """
    reader, writer = connection
    writer.write(REQUEST)
    async with asyncio.timeout(RESPONSE_TIMEOUT):
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(2)
    if not head.startswith(b"HTTP/1.1 200"):
        raise EOFError(head)
    return b"connection: close" not in head.lower()


async def run_client(port: int, group: Group, stop: asyncio.Event, *, delay: float, every: float) -> None:
    """Send requests at a fixed rate until `stop` is set."""
    connection: Connection | None = None
    due = time.monotonic() + delay
    while not stop.is_set():
        await asyncio.sleep(due - time.monotonic())
        due = max(due + every, time.monotonic())
        if connection and group.notices and connection[0].at_eof():
            connection[1].transport.abort()
            connection = None
        if not connection:
            try:
                connection = await asyncio.open_connection("127.0.0.1", port)
            except OSError:  # the server has stopped, so nothing was sent
                continue
        group.sent += 1
        try:
            can_be_used_again = await request(connection)
        except (OSError, EOFError, TimeoutError):
            group.lost += 1
            can_be_used_again = False
        if not (group.keeps and can_be_used_again):
            connection[1].transport.abort()
            connection = None


@contextlib.asynccontextmanager
async def load(port: int, rate: int) -> AsyncIterator[list[Group]]:
    """Run all clients until the `async with` block ends. Yield the groups of clients, which count their requests."""
    stop, groups = asyncio.Event(), make_groups()
    every = CLIENTS * len(groups) / rate
    async with asyncio.TaskGroup() as tasks:
        for group in groups:
            for number in range(CLIENTS):
                tasks.create_task(run_client(port, group, stop, delay=number * every / CLIENTS, every=every))
        yield groups
        stop.set()


@contextlib.contextmanager
def serve(command: list[str], *options: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a server in a temporary directory, and yield its port and process."""
    port = free_port()
    address = f"--port={port}" if command[0] == "uvicorn" else f"--bind=127.0.0.1:{port}"
    program = Path(sys.executable).with_name(command[0])
    with TemporaryDirectory() as folder, Path(folder, "log").open("w") as log:
        Path(folder, "application.py").write_text(APPLICATION)
        Path(folder, "conf.py").write_text(CONFIGURATION)
        server = subprocess.Popen(  # noqa: S603  our own commands
            [program, *command[1:], address, *options], cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
        try:
            until(lambda: get_or_none(f"http://127.0.0.1:{port}"), "the server responds")
            time.sleep(2)  # gives the second worker time to start
            yield port, server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


async def measure(port: int, server: subprocess.Popen[bytes], event: str, rate: int, seconds: float) -> list[Group]:
    """Count the requests that each group of clients sends and loses during an event."""
    async with load(port, rate) as groups:
        await asyncio.sleep(1)
        if event == "SIGHUP":
            server.send_signal(signal.SIGHUP)
        if event == "stop":
            server.send_signal(signal.SIGTERM)
            while server.poll() is None:  # noqa: ASYNC110  there is no event
                await asyncio.sleep(0.1)
        else:
            await asyncio.sleep(seconds)
    return groups


def measure_all(seconds: float) -> Iterator[list[str]]:
    """Yield each row of the table as soon as its measurements are complete."""
    for (name, command), rate in itertools.product(COMMANDS.items(), RATES):
        cells, sent = [], 0
        for event in EVENTS:
            max_requests = f"--{'limit-' if command[0] == 'uvicorn' else ''}max-requests={MAX_REQUESTS}"
            with serve(command, *([max_requests] if event == "max_requests" else [])) as (port, server):
                groups = asyncio.run(measure(port, server, event, rate, seconds))
            cells.append(" / ".join(str(group.lost) for group in groups))
            sent += sum(group.sent for group in groups)
        yield [name, str(rate), *cells, f"{sent:,}"]


def main() -> None:
    """Measure all servers. Print a table, the number of CPUs, and the range of the load average."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lost_requests", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="length of a measurement")
    arguments = parser.parse_args()
    loads = [os.getloadavg()[0]]
    heads = ["server", "requests/s", *EVENTS, "requests sent"]
    sys.stdout.write(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|\n")
    for row in measure_all(arguments.seconds):
        sys.stdout.write(f"| {' | '.join(row)} |\n")
        sys.stdout.flush()
        loads.append(os.getloadavg()[0])
    sys.stdout.write(f"\n{os.cpu_count()} CPUs, load average {min(loads):.0f} to {max(loads):.0f}\n")


if __name__ == "__main__":
    main()
