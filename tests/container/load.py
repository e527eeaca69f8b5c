"""Steady load from plain sockets, which forgives nothing and counts everything.

A request counts from the moment its connection is made: from then on anything but a whole 2xx answer is a failure, be
it a reset, a short read, an error status or silence. A connection that cannot be made was never accepted, so no
request was lost; it is counted apart, and is an error wherever a server should be there.

Like any HTTP client this one does not send on a connection that the server has closed.
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

# Below saturation on two slow cores, and often enough on each connection that none is idle for long.
CLIENTS = 8
REQUESTS_A_SECOND = 80
SECONDS_FOR_A_CONNECTION = 5  # enough for two lost packets
SECONDS_FOR_AN_ANSWER = 30


class Target(NamedTuple):
    """What is asked for: once over connections that are kept, once over a new connection for each request."""

    host: str
    port: int
    path: str
    headers: Mapping[str, str] = {}
    method: str = "GET"
    json: str = ""
    tls: SSLContext | None = None

    def request(self, *, keep_alive: bool) -> bytes:
        """The bytes to be sent."""
        headers = {"Host": self.host, "Connection": "keep-alive" if keep_alive else "close", **self.headers}
        if self.json:
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(self.json))}
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", self.json]).encode()


class Answer(NamedTuple):
    """A whole answer, and the moment at which it was asked for."""

    asked_at: float
    status: int
    headers: Mapping[str, str]
    body: str


@dataclass
class Report:
    """What has come of the requests so far."""

    answers: int = 0
    kept: int = 0  # of them, those whose connection could be used again
    refused: int = 0
    failures: list[str] = field(default_factory=list)
    errors: list[Answer] = field(default_factory=list)  # those of the failures that are whole answers
    slowest: float = 0.0


def goes_on(report: Report, seconds: float = 1) -> None:
    """Lets the load go on for a while."""
    answers = report.answers
    time.sleep(seconds)
    until(lambda: report.answers > answers, "answers go on")


def nothing_is_lost(report: Report, *, refused: bool = False) -> None:
    assert report.failures == []
    assert refused or report.refused == 0
    assert report.answers > report.kept > 0  # over connections that are kept, and over others


@contextlib.contextmanager
def load(*targets: Target) -> Iterator[Report]:
    """Asks for all targets, in both ways, until the block ends; then for the last answers that are due."""
    report, stop = Report(), threading.Event()
    ways = itertools.cycle((target, target.request(keep_alive=keep)) for keep in (True, False) for target in targets)
    clients = [
        _client(target, request, report, stop, start=number / REQUESTS_A_SECOND)
        for number, (target, request) in zip(range(CLIENTS), ways, strict=False)
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


async def _client(target: Target, request: bytes, report: Report, stop: threading.Event, start: float) -> None:
    """Sends at fixed times; a late answer delays its own client only."""
    interval = CLIENTS / REQUESTS_A_SECOND
    due = time.monotonic() + start
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while not stop.is_set():
        await asyncio.sleep(due - time.monotonic())
        due = max(due + interval, time.monotonic())
        if connection and connection[0].at_eof():
            connection[1].transport.abort()
            connection = None
        if not connection:
            try:
                async with asyncio.timeout(SECONDS_FOR_A_CONNECTION):
                    connection = await asyncio.open_connection(target.host, target.port, ssl=target.tls)
            except OSError:  # among them TimeoutError
                report.refused += 1
                continue
        reader, writer = connection
        started_at = time.monotonic()
        try:
            writer.write(request)
            async with asyncio.timeout(SECONDS_FOR_AN_ANSWER):
                status, headers, body = await _answer(reader)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            report.failures.append(f"{time.strftime('%X')} {target.method} {target.path}: {error!r}")
            keep_alive = False
        else:
            keep_alive = headers.get("connection") != "close"
            if 200 <= status < 300:
                report.answers += 1
                report.kept += keep_alive
            else:
                report.failures.append(f"{time.strftime('%X')} {target.method} {target.path}: {status}")
                report.errors.append(Answer(started_at, status, headers, body))
        report.slowest = max(report.slowest, time.monotonic() - started_at)
        if not keep_alive:
            writer.transport.abort()
            connection = None
    if connection:
        connection[1].transport.abort()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], str]:
    """Reads one answer to its end; gives its status, its headers in lower case, and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status, headers = int(head.split()[1]), dict(line.split(": ", 1) for line in head.splitlines()[1:-1])
    return status, headers, (await reader.readexactly(int(headers["content-length"]))).decode()
