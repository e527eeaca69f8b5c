"""A gunicorn worker that runs Uvicorn and loses no request when it is stopped or replaced.

`UvicornWorker` from uvicorn-worker closes idle connections immediately, which resets requests that were just sent on
them. It sends no heartbeat while it finishes its last requests, so gunicorn may kill it as stuck. After `max_requests`,
it exits before its replacement starts. It also ignores SIGQUIT, gunicorn's signal to stop immediately.
"""

import atexit
import os
import signal
import ssl
import sys
import traceback
from functools import partial
from mmap import mmap
from types import FrameType
from typing import Any, ClassVar

from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]  # it has no type hints
from uvicorn.lifespan import off, on  # noqa: F401  import these once, not in each worker
from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]  # it has no type hints

from hitless.checks import StartupError, check_tls
from hitless.forwarded import add_mapped_addresses
from hitless.limits import Limits, enable_send_timeout
from hitless.protocol import LimitedProtocol
from hitless.refusals import RenderRefusal, plain_text
from hitless.server import LIFESPAN_SECONDS, GracefulServer
from hitless.shared import Phase

# The default ciphers. All of them provide forward secrecy and authenticated encryption, as RFC 9325 recommends.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class Worker(UvicornWorker):  # type: ignore[misc]  # untyped
    """The `worker_class` for gunicorn.conf.py. It requires the hooks from `hitless.hooks()`."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        **UvicornWorker.CONFIG_KWARGS,
        "ws": "none",
        "server_header": False,
        "ssl_version": ssl.PROTOCOL_TLS_SERVER,  # gunicorn's default is deprecated in Python
        # How long, in seconds, a stopping worker waits for connections that do not close, for example because the
        # client does not read the response. By default, Uvicorn waits forever, so gunicorn would have to kill the
        # worker.
        "timeout_graceful_shutdown": 1,
    }

    # Set by the `pre_fork` hook.
    has_hooks = False
    # Set to True by the master when it stops an outdated or surplus worker.
    is_stopped = False
    limits = Limits()
    render_refusal: RenderRefusal = staticmethod(plain_text)

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Configure Uvicorn. gunicorn calls this in the master, before the fork."""
        super().__init__(*args, **kwargs)
        self.config.root_path = self.cfg.root_path
        self.config.forwarded_allow_ips = add_mapped_addresses(self.cfg.forwarded_allow_ips)
        self.config.ssl_ciphers = self.config.ssl_ciphers or CIPHERS
        self.config.get_loop_factory()  # import the event loop once, before the fork
        self._phase = mmap(-1, 1)

    @property
    def phase(self) -> Phase:
        """The worker's phase, which is stored in memory that the worker shares with the master."""
        return Phase(self._phase[0])

    @property
    def accepts(self) -> bool:
        """Whether the worker accepts connections."""
        return self.phase in {Phase.ACCEPTING, Phase.AT_MAX_REQUESTS}

    def run(self) -> None:
        """Serve until the worker is told to stop."""
        if not self.has_hooks:
            self.log.warning("gunicorn.conf.py does not assign hitless.hooks(): requests are lost when gunicorn stops")
        try:  # check again, because the worker may run as a different user than the master
            check_tls(self.cfg)
        except StartupError as error:
            self.log.critical(str(error))
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        super().run()
        atexit.register(_exit_without_freeing)

    def init_signals(self) -> None:
        """Handle SIGQUIT and SIGABRT, which Uvicorn does not. The handlers run even if the event loop is blocked."""
        super().init_signals()
        signal.signal(signal.SIGQUIT, self.handle_quit)
        signal.signal(signal.SIGABRT, self.handle_abort)

    def handle_quit(self, _signal: int, _frame: FrameType | None) -> None:
        """Exit immediately."""
        # The master sends the signal repeatedly. Ignore it from now on, so that it cannot interrupt coverage.py, which
        # wraps `os._exit` to save its data.
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        os._exit(0)

    def handle_abort(self, _signal: int, frame: FrameType | None) -> None:
        """Log the stack trace of this stuck worker and exit.

        gunicorn sends SIGABRT after `timeout` seconds without a heartbeat.
        """
        self.log.error("A stuck worker is replaced. Its stack:\n%s", "".join(traceback.format_stack(frame)))
        os._exit(1)

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        self.config.http = partial(LimitedProtocol, limits=self.limits, render_refusal=self.render_refusal)
        # Use the plain sockets. gunicorn's wrappers would be closed twice, and the second call might close another file
        # that has been given the same descriptor.
        sockets = [listener.sock for listener in self.sockets]
        enable_send_timeout(sockets, self.limits.unread_seconds)
        server = GracefulServer(
            self.config,
            worker=self.age,
            phase=self._phase,
            notify=self.notify,
            grace_seconds=max(1, self.cfg.graceful_timeout - LIFESPAN_SECONDS),
        )
        await server.serve(sockets)


def _exit_without_freeing() -> None:
    """Run the remaining exit handlers, then end the process without freeing its objects.

    To free an object, Python writes to memory that the worker shares with the master, so the kernel must first copy
    that memory (copy-on-write). Freeing and copying together take 50 ms of CPU time, which is more than starting a
    worker takes.
    """
    atexit.unregister(_exit_without_freeing)
    atexit._run_exitfuncs()  # noqa: SLF001  there is no public way to run them
    for stream in filter(None, (sys.stdout, sys.stderr)):  # pragma: no cover  coverage has stopped by now
        stream.flush()
    os._exit(0)  # pragma: no cover  coverage has stopped by now
