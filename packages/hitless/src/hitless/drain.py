"""Shut down the whole server on SIGTERM without losing a request. This code runs in gunicorn's master process.

For `drain_seconds`, the server keeps serving while readiness checks fail, so that load balancers stop sending traffic.
Then the master refuses new connections and stops the workers. If no worker accepts connections at that point, the
master first waits for a new worker, which then accepts the connections in the backlog. SIGINT, SIGQUIT or a second
SIGTERM stops the server immediately.
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

# Seconds between the master's checks for a worker that accepts connections, and between repeated SIGQUITs.
POLL_INTERVAL = 0.1

# Defined in asm-generic/socket.h, and in Python's `socket` module since 3.14.
SO_BINDTOIFINDEX = 62
NO_INTERFACE = 2**31 - 1  # an index that no network interface has

Arbiter = Any  # gunicorn has no type hints


def is_draining() -> bool:
    """Return whether the server is shutting down. If it is, readiness checks should fail."""
    return _draining[0] != 0


def is_stopping() -> bool:
    """Return whether the workers have been told to stop. If so, the master must not start any more workers."""
    return _draining[0] == STOPPING


def drain_on_sigterm(arbiter: Arbiter, seconds: float) -> None:
    """Replace gunicorn's signal handlers, so that SIGTERM drains the server before it stops.

    Call this once, in the master. The module's docstring describes the shutdown.
    """

    def start_draining(number: int, frame: FrameType | None) -> None:
        if is_draining():
            stop_now(number, frame)
            return
        _draining[0] = DRAINING
        deadline = time.monotonic() + seconds + arbiter.cfg.graceful_timeout
        signal.signal(signal.SIGALRM, partial(stop, deadline))
        signal.setitimer(signal.ITIMER_REAL, seconds or POLL_INTERVAL, POLL_INTERVAL)

    def stop(deadline: float, number: int, frame: FrameType | None) -> None:
        # Refuse connections only if no other server uses the sockets. After SIGUSR2, the old and the new master share
        # them. With socket activation, systemd keeps them open for the next server.
        if arbiter.reexec_pid == arbiter.master_pid == 0 and not arbiter.systemd:
            if not any(worker.accepts for worker in list(arbiter.WORKERS.values())):
                if time.monotonic() > deadline:  # no new worker has started, and the old workers have had time to stop
                    stop_now(number, frame)
                return  # the next alarm checks again
            for listener in arbiter.LISTENERS:
                refuse_connections(listener.sock)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _draining[0] = STOPPING
        signal_workers(arbiter.WORKERS, signal.SIGTERM)
        arbiter.signal(signal.SIGTERM, frame)

    def stop_now(number: int, frame: FrameType | None) -> None:
        _draining[0] = STOPPING
        # Send SIGQUIT repeatedly: the master may start more workers before its main loop handles the stop signal.
        signal.signal(signal.SIGALRM, lambda *_: signal_workers(arbiter.WORKERS, signal.SIGQUIT))
        signal.setitimer(signal.ITIMER_REAL, POLL_INTERVAL, POLL_INTERVAL)
        arbiter.signal(signal.SIGINT if number == signal.SIGINT else signal.SIGQUIT, frame)  # gunicorn logs the signal

    signal.signal(signal.SIGTERM, start_draining)
    signal.signal(signal.SIGINT, stop_now)
    signal.signal(signal.SIGQUIT, stop_now)
    # Cancel the timer at exit. Otherwise, an alarm could kill the master after Python has removed the signal handlers.
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)


def signal_workers(workers: Iterable[int], number: signal.Signals) -> None:
    """Send a signal immediately to the workers with the given process ids.

    gunicorn itself would send the signal only in its main loop. After SIGHUP, that loop first waits for the old workers
    to exit.
    """
    for pid in list(workers):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def refuse_connections(listener: socket.socket) -> None:
    """Refuse new connections, but keep those in the backlog, so that workers can accept them.

    Closing a listening socket would reset the connections in its backlog, even if clients have already sent requests.
    Instead, bind the socket to a network interface that does not exist. Since Linux 5.7, this needs no privileges. It
    affects every process that shares the socket. TCP handshakes in progress still complete.
    """
    with contextlib.suppress(OSError):  # without this option, new connections may be reset
        listener.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, NO_INTERFACE)
