"""Put a server under constant load. The clients use plain sockets, never retry, and count every failure.

On an established connection, anything except a complete 2xx response is a failure: a reset, a truncated response, an
error status or a timeout. A failed connection attempt loses no request, and is counted separately. It also makes a test
fail, unless the server is expected to refuse connections.

Like other HTTP clients, these clients do not reuse a connection that the server has closed.
"""

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import NamedTuple

from processes import until

# The load is low enough for two slow CPUs, but high enough to use every connection frequently.
CLIENTS = 8
REQUESTS_PER_SECOND = 80
CONNECT_TIMEOUT = 5  # seconds; long enough to retransmit a lost packet twice
RESPONSE_TIMEOUT = 30


class Target(NamedTuple):
    """A request that clients repeat.

    Half of the clients keep their connection open. The others open a new one for each request.
    """

    host: str
    port: int
    path: str
    headers: Mapping[str, str] = {}
    method: str = "GET"
    json: str = ""
    tls: SSLContext | None = None

    def encode(self, *, keep_alive: bool) -> bytes:
        """Return the request as bytes in HTTP/1.1."""
        headers = {"Host": self.host, "Connection": "keep-alive" if keep_alive else "close", **self.headers}
        if self.json:
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(self.json))}
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", self.json]).encode()


class ErrorResponse(NamedTuple):
    """A complete response with a status other than 2xx, and the time its request was sent."""

    sent_at: float
    status: int
    headers: Mapping[str, str]
    body: str


@dataclass
class Report:
    """The results of the load so far."""

    responses: int = 0  # 2xx
    kept_alive: int = 0  # 2xx responses without `Connection: close`
    refused: int = 0  # failed connection attempts
    failures: list[str] = field(default_factory=list)
    error_responses: list[ErrorResponse] = field(default_factory=list)  # those failures that have a complete response
    slowest: float = 0.0  # seconds


def continue_load(report: Report, seconds: float = 1) -> None:
    """Keep the load running for at least `seconds`, until at least one more request has succeeded."""
    responses = report.responses
    time.sleep(seconds)
    until(lambda: report.responses > responses, "responses continue")


def assert_no_request_lost(report: Report, *, may_refuse: bool = False) -> None:
    """Assert that no request failed, and that requests were sent on both kept-alive and new connections."""
    assert report.failures == []
    assert may_refuse or report.refused == 0
    assert report.responses > report.kept_alive > 0


@contextlib.contextmanager
def load(*targets: Target) -> Iterator[Report]:
    """Send requests to all targets until the `with` block ends, then wait for the last responses."""
    report, stop = Report(), threading.Event()
    requests = itertools.cycle((target, target.encode(keep_alive=keep)) for keep in (True, False) for target in targets)
    clients = [
        _run_client(target, request, report, stop, delay=number / REQUESTS_PER_SECOND)
        for number, (target, request) in zip(range(CLIENTS), requests, strict=False)
    ]

    async def run() -> None:
        await asyncio.gather(*clients)

    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(asyncio.run, run())
        try:
            yield report
        finally:
            stop.set()
        running.result()


async def _run_client(target: Target, request: bytes, report: Report, stop: threading.Event, delay: float) -> None:
    """Send the request at a fixed rate. A late response delays only this client."""
    interval = CLIENTS / REQUESTS_PER_SECOND
    due = time.monotonic() + delay
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while not stop.is_set():
        await asyncio.sleep(due - time.monotonic())
        due = max(due + interval, time.monotonic())
        if connection and connection[0].at_eof():
            connection[1].transport.abort()
            connection = None
        if not connection:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    connection = await asyncio.open_connection(target.host, target.port, ssl=target.tls)
            except OSError:  # TimeoutError is a subclass of it
                report.refused += 1
                continue
        reader, writer = connection
        sent_at = time.monotonic()
        try:
            writer.write(request)
            async with asyncio.timeout(RESPONSE_TIMEOUT):
                status, headers, body = await _read_response(reader)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            report.failures.append(f"{time.strftime('%X')} {target.method} {target.path}: {error!r}")
            keep_alive = False
        else:
            keep_alive = headers.get("connection") != "close"
            if 200 <= status < 300:
                report.responses += 1
                report.kept_alive += keep_alive
            else:
                report.failures.append(f"{time.strftime('%X')} {target.method} {target.path}: {status}")
                report.error_responses.append(ErrorResponse(sent_at, status, headers, body))
        report.slowest = max(report.slowest, time.monotonic() - sent_at)
        if not keep_alive:
            writer.transport.abort()
            connection = None
    if connection:
        connection[1].transport.abort()


async def _read_response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], str]:
    """Read one complete response, and return its status, its headers with lower-case names, and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status, headers = int(head.split()[1]), dict(line.split(": ", 1) for line in head.splitlines()[1:-1])
    return status, headers, (await reader.readexactly(int(headers["content-length"]))).decode()
