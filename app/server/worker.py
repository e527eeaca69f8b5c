"""A gunicorn worker that runs Uvicorn and, when it is stopped or replaced, ends without losing a request.

Four things go wrong with the worker that uvicorn-worker provides, and are put right here. On leaving it closes its
idle connections at once, so that a client which just sent a request on one of them gets a reset. While it waits for
its last requests it sends no heartbeat, so that gunicorn may kill it as stuck. At MAX_REQUESTS it leaves, and only when
it has left is another one started. And SIGQUIT, gunicorn's way to say "at once", does nothing.
"""

import asyncio
import atexit
import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
import traceback
from mmap import mmap
from types import FrameType
from typing import Any, ClassVar

from uvicorn import Config
from uvicorn.lifespan import on  # noqa: F401  loaded once, not by each worker for itself
from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]  # it has no types

from app.server.balance import BalancedServer
from app.server.drain import is_draining
from app.server.protocol import LimitedProtocol, leave_those_who_do_not_read

log = logging.getLogger("uvicorn.error")

# How long a leaving worker still answers on the connections it has. A client in the middle of steady work sends its
# next request on each within this time, and learns from `Connection: close` to go elsewhere.
LAST_REQUESTS_SECONDS = 0.5
# How long a leaving worker waits for those who are in the middle of a TLS handshake, which precedes their request.
HANDSHAKE_SECONDS = 5
# Of gunicorn's `graceful_timeout` this much is kept for what comes after the last request, the lifespan's shutdown.
LIFESPAN_SECONDS = 5
# How long a worker that has served its number of requests waits for its successor.
SUCCESSOR_SECONDS = 5

# Changes when a worker begins to accept, in memory that all share with the master.
_beginnings = mmap(-1, 1)


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


def _exit_without_freeing() -> None:
    """Ends the process after all else that is registered with `atexit`.

    Python would free one object after the other, and for that copy all of the memory that the worker shares with the
    master: 50 ms, which is more than all that it takes to start one.
    """
    atexit.unregister(_exit_without_freeing)
    atexit._run_exitfuncs()  # noqa: SLF001  there is no public way to run them
    for stream in filter(None, (sys.stdout, sys.stderr)):  # pragma: no cover  coverage has ended with them
        stream.flush()
    os._exit(0)  # pragma: no cover  the same


def replace_before_leaving(master: Any) -> None:  # noqa: ANN401  gunicorn has no types
    """Has the master start a successor when a worker is about to leave; to be called once, in the master.

    By itself it does so when the worker has gone, which takes a second. With two workers, half of the service would be
    missing for that long, each time one of them has served its number of requests.
    """
    manage_workers = master.manage_workers

    def manage() -> None:
        if leaving := sum(worker.leaving[0] for worker in master.WORKERS.values()):
            master.num_workers += leaving
        manage_workers()
        if leaving:
            master.num_workers -= leaving

    master.manage_workers = manage


class DrainingServer(BalancedServer):
    """A worker's server, with an ending in two steps: first no new connections, then none at all.

    `grace` is the time for its last requests, in seconds.
    """

    def __init__(self, config: Config, worker: "DrainingWorker", grace: int) -> None:
        super().__init__(config, worker.age)
        self.grace = grace
        self.notify = worker.notify
        self.accepting = worker.accepting
        self.leaving = worker.leaving

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  the base's
        """Ends in order. Uvicorn would raise the signal again in the end, and so skip `worker_exit` and `atexit`."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting[0] = True
        _beginnings[0] = (_beginnings[0] + 1) % 256

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets clients leave, waits for running requests as long as the grace lasts, then ends the lifespan."""
        heartbeat = asyncio.create_task(self._send_heartbeat())
        if not self.should_exit:  # nobody has told it to: it has served its number of requests
            await self._wait_for_successor()
        deadline = asyncio.get_running_loop().time() + self.grace
        self.accepting[0] = False
        self._ask_clients_to_leave()
        if is_draining():
            # This worker may be the last to accept what waits, however much it has to do.
            await asyncio.sleep(LAST_REQUESTS_SECONDS)
            self.accept_what_waits()
        # The other workers, if it is not the whole server that ends, go on accepting from the same sockets.
        self.stop_listening()
        remaining = deadline - asyncio.get_running_loop().time() - LAST_REQUESTS_SECONDS
        await self.wait_for_handshakes(min(HANDSHAKE_SECONDS, remaining))
        await asyncio.sleep(LAST_REQUESTS_SECONDS)
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._finish_requests(deadline)
        await super().shutdown(sockets)
        heartbeat.cancel()

    async def _wait_for_successor(self) -> None:
        """Serves on until another worker, whichever it is, begins to accept."""
        self.leaving[0] = True
        beginnings = _beginnings[0]
        with contextlib.suppress(OSError):  # not where the master has died
            os.kill(os.getppid(), signal.SIGCHLD)  # for it to look at its workers
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SUCCESSOR_SECONDS):
                while _beginnings[0] == beginnings and not self.should_exit:  # noqa: ASYNC110  in another process
                    await asyncio.sleep(0.02)

    def _ask_clients_to_leave(self) -> None:
        """Answers every request from now on with `Connection: close`."""
        self.server_state.default_headers.append((b"connection", b"close"))
        # Requests that are under way may have a list of headers from before.
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)  # the present request of an HTTP/1.1 connection
            if cycle and not cycle.response_complete:
                connection.shutdown()

    async def _finish_requests(self, deadline: float) -> None:
        """Waits for the requests, and cancels those that take too long: the application answers them with 503.

        Uvicorn would cancel them too, but end the lifespan under them, before they can answer.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110  Uvicorn's own sets
                    await asyncio.sleep(0.1)
        if tasks := list(self.server_state.tasks):
            log.warning("%d requests take longer than the grace of %d s, and are ended", len(tasks), self.grace)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=LAST_REQUESTS_SECONDS)

    async def _send_heartbeat(self) -> None:
        """Tells gunicorn that this worker is not stuck, for as long as it may take to end, and no longer."""
        for _ in range(SUCCESSOR_SECONDS + self.grace + LIFESPAN_SECONDS):
            self.notify()
            await asyncio.sleep(1)


class DrainingWorker(UvicornWorker):  # type: ignore[misc]  # an untyped class
    """The `worker_class` for gunicorn.conf.py."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        **UvicornWorker.CONFIG_KWARGS,
        "lifespan": "on",  # a failing start is a failure, not a sign that there is no lifespan
        "http": LimitedProtocol,
        "ws": "none",  # there are no WebSockets, and nothing to install for them
        "access_log": False,  # the application writes its own line
        "server_header": False,
        "ssl_version": ssl.PROTOCOL_TLS_SERVER,  # gunicorn's default is deprecated in Python
    }

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.config.root_path = self.cfg.root_path
        # For connections that cannot be ended, as those of clients that do not read their answer. By default Uvicorn
        # waits for them without end, until gunicorn kills it.
        self.config.timeout_graceful_shutdown = 1
        # A worker is made in the master and then forked: the event loop is loaded for all, and these bytes are shared.
        # They say to the master whether it can count on this worker to accept what waits, and whether it takes a
        # successor.
        self.config.get_loop_factory()
        self.accepting = mmap(-1, 1)
        self.leaving = mmap(-1, 1)

    def run(self) -> None:
        """Serves until the end. Where that is an error, gunicorn says so, and Python ends the process by itself."""
        super().run()
        atexit.register(_exit_without_freeing)

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
        grace = max(1, self.cfg.graceful_timeout - LIFESPAN_SECONDS)
        # The plain sockets: gunicorn's own wrappers get closed twice, and the second close may hit a file that has
        # been given the same number since.
        sockets = [listener.sock for listener in self.sockets]
        leave_those_who_do_not_read(sockets)
        await DrainingServer(self.config, self, grace).serve(sockets)
