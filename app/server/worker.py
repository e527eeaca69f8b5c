"""A gunicorn worker that runs Uvicorn and, when it is stopped or replaced, ends without losing a request.

Three things go wrong with the worker that uvicorn-worker provides, and are put right here. On leaving it closes its
idle connections at once, so that a client which just sent a request on one of them gets a reset. While it waits for
its last requests it sends no heartbeat, so that gunicorn may kill it as stuck. And SIGQUIT, gunicorn's way to say
"at once", does nothing.
"""

import asyncio
import os
import signal
import socket
import ssl
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar

from uvicorn import Config, Server
from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]  # it has no types

# How long a leaving worker still answers on the connections it has. A client in the middle of steady work sends its
# next request on each within this time, and learns from `Connection: close` to go elsewhere.
LAST_REQUESTS_SECONDS = 0.5
# Of gunicorn's `graceful_timeout` this much is kept for what comes after the last request, the lifespan's shutdown.
LIFESPAN_SECONDS = 5


# What the master sends to end a worker.
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def lose_no_signal_while_forking() -> None:
    """Lets the master end a worker that it has only just forked; to be called once, in the master.

    Until a new process sets its own handlers it has those of the master, which only note the signal for a loop that
    the new process does not run. A server that is stopped while it starts would wait for that worker in vain.
    """
    os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_reset_signals)


def _hold_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING_SIGNALS)


def _reset_signals() -> None:
    for number in _ENDING_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    _release_signals()


class DrainingServer(Server):
    """Uvicorn's server, with an ending in two steps: first no new connections, then none at all.

    `notify` is gunicorn's heartbeat.
    """

    def __init__(self, config: Config, notify: Callable[[], None]) -> None:
        super().__init__(config)
        self.notify = notify

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets clients leave, then waits for running requests up to `timeout_graceful_shutdown` seconds."""
        heartbeat = asyncio.create_task(self._send_heartbeat())
        # The other workers go on accepting from the same listening sockets.
        for server in self.servers:
            server.close()
        # In place: requests that are already under way refer to this list.
        self.server_state.default_headers.append((b"connection", b"close"))
        await asyncio.sleep(LAST_REQUESTS_SECONDS)
        await super().shutdown(sockets)
        heartbeat.cancel()

    async def _send_heartbeat(self) -> None:
        """Tells gunicorn that this worker is not stuck, for as long as it may take to end, and no longer."""
        for _ in range((self.config.timeout_graceful_shutdown or 0) + LIFESPAN_SECONDS):
            self.notify()
            await asyncio.sleep(1)


class DrainingWorker(UvicornWorker):  # type: ignore[misc]  # an untyped class
    """The `worker_class` for gunicorn.conf.py."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        **UvicornWorker.CONFIG_KWARGS,
        "lifespan": "on",  # a failing start is a failure, not a sign that there is no lifespan
        "access_log": False,  # the application writes its own line
        "server_header": False,
        "ssl_version": ssl.PROTOCOL_TLS_SERVER,  # gunicorn's default is deprecated in Python
    }

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        # Uvicorn would wait for running requests without end, until gunicorn kills it.
        self.config.timeout_graceful_shutdown = max(1, self.cfg.graceful_timeout - LIFESPAN_SECONDS)

    def init_signals(self) -> None:
        """Sets the signals that Uvicorn does not; plain handlers, which run even where the event loop is blocked."""
        super().init_signals()
        signal.signal(signal.SIGQUIT, self.handle_quit)
        signal.signal(signal.SIGABRT, self.handle_abort)

    def handle_quit(self, _signal: int, _frame: FrameType | None) -> None:
        """Ends at once. What must not be lost is in the database, which survives the loss of a client."""
        os._exit(0)

    def handle_abort(self, _signal: int, frame: FrameType | None) -> None:
        """Says where it was stuck: gunicorn sends SIGABRT to a worker that sent no heartbeat for `timeout` seconds."""
        self.log.error("Stuck, and therefore replaced, at:\n%s", "".join(traceback.format_stack(frame)))
        os._exit(1)

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        # The plain sockets: gunicorn's own wrappers get closed twice, and the second close may hit a file that has
        # been given the same number since.
        await DrainingServer(self.config, self.notify).serve(sockets=[listener.sock for listener in self.sockets])
