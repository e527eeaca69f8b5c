"""Helpers for tests that start servers as processes."""

import contextlib
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

T = TypeVar("T")

# Seconds to wait for an event. This is much longer than necessary, so that tests do not fail on slow machines.
TIMEOUT = 120


def until(condition: Callable[[], T | None], description: str) -> T:
    """Wait until a condition returns a truthy value, and return this value. On timeout, fail with the description."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.02)
    pytest.fail(f"{description}: timed out after {TIMEOUT} s")


def get_or_none(url: str) -> httpx.Response | None:
    """Return the server's response, or None if the server is not running."""
    try:
        return httpx.get(url, timeout=TIMEOUT)
    except httpx.TransportError:
        return None


def memory(pid: int) -> int:
    """Return the memory of a process in bytes, excluding memory that it shares with other processes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) * 1024


def free_port() -> int:
    """Return a free port outside the range that the system uses for outgoing connections."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
