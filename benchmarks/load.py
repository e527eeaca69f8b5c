"""Load from `wrk`, and what it reports."""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

_UNITS = {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000}


class Load(NamedTuple):
    """Requests per second, and the milliseconds within which 50 and 99 of 100 were answered."""

    rate: float
    p50: float
    p99: float


def typical(loads: Iterable[Load]) -> Load:
    """The median of each figure."""
    return Load(*map(median, zip(*loads, strict=True)))


def get(url: str, token: str, *, seconds: int, connections: int = 32) -> Load:
    """Asks for one URL as fast as it is answered."""
    return _wrk(url, seconds, connections, ["--header", f"Authorization: Bearer {token}"])


def post(url: str, body: str, *, seconds: int, connections: int = 32) -> Load:
    """Sends one JSON body again and again."""
    with TemporaryDirectory() as folder:
        script = Path(folder, "post.lua")
        script.write_text(
            f'wrk.method, wrk.body = "POST", [[{body}]]\nwrk.headers["Content-Type"] = "application/json"\n'
        )
        return _wrk(url, seconds, connections, ["--script", str(script)])


def _wrk(url: str, seconds: int, connections: int, options: list[str]) -> Load:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--timeout=60s", "--latency", *options, url]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout  # noqa: S603  our own
    if "Non-2xx" in said or "Socket errors" in said:
        sys.exit(f"{' '.join(command)}\n{said}")
    (rate,) = re.findall(r"Requests/sec: +([0-9.]+)", said)
    # In the part on the distribution, whose lines hold nothing else.
    (p50,) = re.findall(r"^ +50% +([0-9.]+)([a-z]+) *$", said, re.MULTILINE)
    (p99,) = re.findall(r"^ +99% +([0-9.]+)([a-z]+) *$", said, re.MULTILINE)
    return Load(float(rate), *(float(number) * _UNITS[unit] for number, unit in (p50, p99)))
