"""Stop the whole server on SIGTERM without losing a request. This runs in gunicorn's master process.

First, readiness fails for `drain_seconds` while every request is served as before, so that load balancers stop sending
traffic. Then new connections are refused and the workers are stopped. If no worker accepts at that moment, because the
last one is being replaced, the master waits for one first, so that the connections in the backlog are accepted. A
second SIGTERM stops everything at once, as SIGINT and SIGQUIT do.
"""

import atexit
import contextlib
import mmap
import os
import signal
import socket
import time
from collections.abc import Iterable
from functools import partial
from types import FrameType
from typing import Any

DRAINING, STOPPING = 1, 2
# Shared by the master and its workers, because this module is imported before the fork.
_draining = mmap.mmap(-1, 1)

# Seconds between checks whether any worker accepts connections.
POLL_INTERVAL = 0.1

# asm-generic/socket.h; in Python's socket module since 3.14.
SO_BINDTOIFINDEX = 62
NO_INTERFACE = 2**31 - 1

Arbiter = Any  # gunicorn has no type hints


def is_draining() -> bool:
    """Return whether the server was told to stop, in which case readiness checks should fail."""
    return _draining[0] != 0


def is_stopping() -> bool:
    """Return whether the workers were told to stop, so that none may be started."""
    return _draining[0] == STOPPING


def drain_on_sigterm(arbiter: Arbiter, seconds: float) -> None:
    """Replace gunicorn's handling of SIGTERM with the steps described above. Call it once, in the master."""

    def start_draining(number: int, frame: FrameType | None) -> None:
        if is_draining():
            stop_now(number, frame)
            return
        _draining[0] = DRAINING
        deadline = time.monotonic() + seconds + arbiter.cfg.graceful_timeout
        signal.signal(signal.SIGALRM, partial(stop, deadline))
        signal.setitimer(signal.ITIMER_REAL, seconds or POLL_INTERVAL, POLL_INTERVAL)

    def stop(deadline: float, number: int, frame: FrameType | None) -> None:
        # If another master serves from the same sockets (SIGUSR2, systemd), they must stay open.
        if arbiter.reexec_pid == arbiter.master_pid == 0 and not arbiter.systemd:
            if not any(worker.accepts for worker in list(arbiter.WORKERS.values())):
                if time.monotonic() > deadline:  # no worker has started, and each has had its time to stop
                    stop_now(number, frame)
                return  # until the next alarm
            for listener in arbiter.LISTENERS:
                refuse_connections(listener.sock)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _draining[0] = STOPPING
        signal_workers(arbiter.WORKERS, signal.SIGTERM)
        arbiter.signal(signal.SIGTERM, frame)

    def stop_now(number: int, frame: FrameType | None) -> None:
        _draining[0] = STOPPING
        # Repeated, because workers may still be started until the master's loop handles the signal.
        signal.signal(signal.SIGALRM, lambda *_: signal_workers(arbiter.WORKERS, signal.SIGQUIT))
        signal.setitimer(signal.ITIMER_REAL, POLL_INTERVAL, POLL_INTERVAL)
        arbiter.signal(signal.SIGINT if number == signal.SIGINT else signal.SIGQUIT, frame)  # gunicorn logs its name

    signal.signal(signal.SIGTERM, start_draining)
    signal.signal(signal.SIGINT, stop_now)
    signal.signal(signal.SIGQUIT, stop_now)
    # An alarm that arrives after Python has removed its signal handlers would kill the master.
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)


def signal_workers(workers: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to every worker, given by process id.

    The master does so too, but not while it waits for the workers that a SIGHUP has replaced.
    """
    for pid in list(workers):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def refuse_connections(listener: socket.socket) -> None:
    """Refuse new connections, but let those in the backlog be accepted.

    Closing a listening socket resets the connections in its backlog, whose requests may have been sent already.
    Instead, the socket is bound to a network interface that does not exist. That needs no privilege (Linux 5.7) and
    applies to every process that shares the socket. Handshakes in progress complete.
    """
    with contextlib.suppress(OSError):  # other systems reset the connections that arrive at this moment
        listener.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, NO_INTERFACE)
