"""How the whole server ends on SIGTERM without losing a request: in the master, before any worker hears of it.

First readiness says `Shutting down`, for DRAIN_SECONDS, while everything is served as before: whoever sends traffic has
time to send it elsewhere. Then nobody can connect any more, and the workers are stopped; but not before there is one to
accept what has come so far, as there may be none while the last one, or all of them, are being replaced. A second
SIGTERM ends it all at once, as do SIGINT and SIGQUIT, whatever the master is waiting for.
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

# Memory that the master shares with its workers, as long as this module is loaded before the fork (`preload_app`).
_draining = mmap.mmap(-1, 1)

# How often, in seconds, it is looked whether a worker accepts.
MOMENT = 0.1

# asm-generic/socket.h; Python has a name for it from 3.14 on.
SO_BINDTOIFINDEX = 62
NO_INTERFACE = 2**31 - 1


def is_draining() -> bool:
    """Whether the server has been told to end, and is being left."""
    return _draining[0] != 0


def drain_on_sigterm(master: Any, seconds: int) -> None:  # noqa: ANN401  gunicorn has no types
    """Puts the steps above before gunicorn's own handling of SIGTERM; to be called once, in the master.

    Its workers must be of the class `DrainingWorker`, or have what that has.
    """

    def begin(_signal: int, frame: FrameType | None) -> None:
        if is_draining():
            end(_signal, frame)
            return
        _draining[0] = 1
        deadline = time.monotonic() + seconds + master.cfg.graceful_timeout
        signal.signal(signal.SIGALRM, partial(stop, deadline))
        signal.setitimer(signal.ITIMER_REAL, seconds or MOMENT, MOMENT)

    def stop(deadline: float, _signal: int, frame: FrameType | None) -> None:
        # Where another master serves from the same sockets (SIGUSR2, systemd) they are not ours to close.
        if master.reexec_pid == master.master_pid == 0 and not master.systemd:
            if not any(worker.accepting[0] for worker in list(master.WORKERS.values())):
                if time.monotonic() > deadline:  # there will be none, and each has had its time to end
                    end(_signal, frame)
                return  # until the next alarm
            for listener in master.LISTENERS:
                refuse_connections(listener.sock)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _tell(master.WORKERS, signal.SIGTERM)
        master.signal(signal.SIGTERM, frame)

    def end(_signal: int, frame: FrameType | None) -> None:
        # Again and again, as until the master's loop hears of it new workers may be started.
        signal.signal(signal.SIGALRM, lambda *_: _tell(master.WORKERS, signal.SIGQUIT))
        signal.setitimer(signal.ITIMER_REAL, MOMENT, MOMENT)
        master.signal(signal.SIGQUIT, frame)

    signal.signal(signal.SIGTERM, begin)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGQUIT, end)
    # An alarm that comes when Python has put its handlers away would kill the master.
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)


def _tell(workers: Iterable[int], number: signal.Signals) -> None:
    """Signals all workers. The master does so too, but not while it waits for those that a SIGHUP has replaced."""
    for pid in list(workers):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def refuse_connections(listener: socket.socket) -> None:
    """Refuses new connections, while those that wait in the listener's queue can still be accepted.

    Closing a listener resets what waits in its queue: requests that were sent already. So first it is bound to a
    network interface that does not exist, which takes no privilege (Linux 5.7) and holds for every process that shares
    it. Handshakes that are under way end well, and each accepted connection is as any other.
    """
    # Elsewhere than on Linux those that connect in the very last moment lose.
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, NO_INTERFACE)
