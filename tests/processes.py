"""What it takes to test programs that run beside the tests: a port that is free, and patience."""

import contextlib
import secrets
import socket
import time
from collections.abc import Callable
from typing import TypeVar

import httpx
import pytest

T = TypeVar("T")

# For what must happen soon: far longer than it takes, so that a busy machine is no failure.
PATIENCE = 120


def until(condition: Callable[[], T | None], what: str) -> T:
    """Waits until a condition gives something true, and gives that."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.02)
    pytest.fail(f"{what}: not within {PATIENCE} s")


def answer(url: str) -> httpx.Response | None:
    """What a server answers, or nothing where none is up."""
    try:
        return httpx.get(url, timeout=PATIENCE)
    except httpx.TransportError:
        return None


def free_port() -> int:
    """A port of this machine that was free a moment ago, and is not one of those that whoever connects is given."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
