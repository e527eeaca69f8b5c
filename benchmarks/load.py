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
    """Requests per second, and the 50th and 99th percentiles of the response times in milliseconds."""

    rate: float
    p50: float
    p99: float


class Request(NamedTuple):
    """A request and its expected status. `%d` in the JSON body is replaced with the request's number."""

    path: str
    method: str = "GET"
    body: str = ""
    status: int = 200


def median_load(loads: Iterable[Load]) -> Load:
    """Return the median rate, the median p50 and the median p99."""
    return Load(*map(median, zip(*loads, strict=True)))


def get(url: str, token: str, *, seconds: int, connections: int = 32) -> Load:
    """Send GET requests as fast as the server can answer them."""
    return _wrk(url, seconds, connections, ["--header", f"Authorization: Bearer {token}"])


def post(url: str, body: str, *, seconds: int, connections: int = 32) -> Load:
    """Send POST requests with a JSON body as fast as the server can answer them."""
    with TemporaryDirectory() as folder:
        script = Path(folder, "post.lua")
        script.write_text(
            f'wrk.method, wrk.body = "POST", [[{body}]]\nwrk.headers["Content-Type"] = "application/json"\n'
        )
        return _wrk(url, seconds, connections, ["--script", str(script)])


# wrk has no option for the number of requests, so the function `response` counts responses and exits after the last
# one. wrk calls `done` only if the time limit `-d` expires first.
_SEND = """
local number, count, status = 0, {count}, {status}
function request()
  number = number + 1
  return wrk.format("{method}", nil, {{Authorization = "Bearer {token}", ["Content-Type"] = "application/json"}},
                    string.format([[{body}]], number))
end
function response(actual)
  if actual ~= status then io.stderr:write("The status is ", actual, ", not ", status, "\\n") os.exit(1) end
  count = count - 1
  if count == 0 then os.exit(0) end
end
function done() os.exit(1) end
"""


def send(request: Request, count: int, server_url: str, token: str) -> None:
    """Send `count` requests, one after the other.

    Raises:
        subprocess.CalledProcessError: A response had an unexpected status, or not all responses arrived within ten
            minutes.
    """
    with TemporaryDirectory() as folder:
        script = Path(folder, "send.lua")
        script.write_text(_SEND.format(**request._asdict(), count=count, token=token))
        command = ["wrk", "-t1", "-c1", "-d600s", "--timeout=60s", "--script", str(script), server_url + request.path]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)  # noqa: S603  our own


def _wrk(url: str, seconds: int, connections: int, options: list[str]) -> Load:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--timeout=60s", "--latency", *options, url]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout  # noqa: S603  our own
    if "Non-2xx" in output or "Socket errors" in output:
        sys.exit(f"{' '.join(command)}\n{output}")
    (rate,) = re.findall(r"Requests/sec: +([0-9.]+)", output)
    # A line of the latency distribution contains only a percentage and a time.
    (p50,) = re.findall(r"^ +50% +([0-9.]+)([a-z]+) *$", output, re.MULTILINE)
    (p99,) = re.findall(r"^ +99% +([0-9.]+)([a-z]+) *$", output, re.MULTILINE)
    return Load(float(rate), *(float(number) * _MILLISECONDS[unit] for number, unit in (p50, p99)))
