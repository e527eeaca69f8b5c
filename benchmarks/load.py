"""Run `wrk`, and parse its results."""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

_MILLISECONDS = {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000}


class Load(NamedTuple):
    """Requests per second, and the 50th and 99th percentile of the response times in milliseconds."""

    rate: float
    p50: float
    p99: float


def median_load(loads: Iterable[Load]) -> Load:
    """Return the median of each figure."""
    return Load(*map(median, zip(*loads, strict=True)))


def get(url: str, token: str, *, seconds: int, connections: int = 32) -> Load:
    """Send GET requests as fast as the server responds."""
    return _wrk(url, seconds, connections, ["--header", f"Authorization: Bearer {token}"])


def post(url: str, body: str, *, seconds: int, connections: int = 32) -> Load:
    """Send POST requests with a JSON body as fast as the server responds."""
    with TemporaryDirectory() as folder:
        script = Path(folder, "post.lua")
        script.write_text(
            f'wrk.method, wrk.body = "POST", [[{body}]]\nwrk.headers["Content-Type"] = "application/json"\n'
        )
        return _wrk(url, seconds, connections, ["--script", str(script)])


def _wrk(url: str, seconds: int, connections: int, options: list[str]) -> Load:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--timeout=60s", "--latency", *options, url]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout  # noqa: S603  our own
    if "Non-2xx" in output or "Socket errors" in output:
        sys.exit(f"{' '.join(command)}\n{output}")
    (rate,) = re.findall(r"Requests/sec: +([0-9.]+)", output)
    # Lines of the latency distribution contain only a percentage and a time.
    (p50,) = re.findall(r"^ +50% +([0-9.]+)([a-z]+) *$", output, re.MULTILINE)
    (p99,) = re.findall(r"^ +99% +([0-9.]+)([a-z]+) *$", output, re.MULTILINE)
    return Load(float(rate), *(float(number) * _MILLISECONDS[unit] for number, unit in (p50, p99)))
