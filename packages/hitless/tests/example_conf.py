"""The gunicorn.conf.py of the example application. Tests change its settings with environment variables."""

import atexit
import errno
import logging
import os
import resource
import time
from pathlib import Path
from typing import Any

import hitless.protocol
from hitless import accept, server

server.LAST_REQUESTS_SECONDS = float(os.environ.get("LAST_REQUESTS_SECONDS", "0.5"))

worker_class = "hitless.Worker"
control_socket_disable = True
hooks = hitless.hooks(
    drain_seconds=float(os.environ.get("DRAIN_SECONDS", "0")),
    limits=hitless.Limits(
        request_seconds=float(os.environ.get("REQUEST_SECONDS", "20")),
        unread_seconds=float(os.environ.get("UNREAD_SECONDS", "30")),
        websocket_idle_seconds=float(os.environ.get("WEBSOCKET_IDLE_SECONDS", "40")),
    ),
)

on_starting, when_ready, _, child_exit = hooks
server.WARN_SECONDS = float(os.environ.get("WARN_SECONDS", "15"))
hitless.protocol.LINGER_SECONDS = float(os.environ.get("LINGER_SECONDS", "1"))
accept.EXHAUSTED_SECONDS = float(os.environ.get("EXHAUSTED_SECONDS", "1"))
accept.HANDSHAKE_SECONDS = float(os.environ.get("HANDSHAKE_SECONDS", "20"))

if "PIDFILE" in os.environ:
    pidfile = hitless.usable_pidfile(os.environ["PIDFILE"])

handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("%(message)s: id %(request_id)s, status %(status)s, client %(client)s"))
logging.getLogger("hitless").addHandler(handler)
logging.getLogger("hitless").setLevel(logging.INFO)


def pre_fork(arbiter: Any, worker: Any) -> None:  # noqa: ANN401  gunicorn has no type hints
    """If the file named by FORK_FAILS_WITH exists, raise the error that `fork` raises at the process limit."""
    if Path(os.environ.get("FORK_FAILS_WITH", "nothing")).exists():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    hooks.pre_fork(arbiter, worker)


def post_fork(arbiter: Any, worker: Any) -> None:  # noqa: ANN401  gunicorn has no type hints
    """Limit open files to MAX_FILES, and wait FORK_DELAY seconds before the worker installs its signal handlers."""
    arbiter.log.info("forked")
    atexit.register(arbiter.log.info, "worker %d has run its atexit handlers", worker.pid)
    if files := int(os.environ.get("MAX_FILES", "0")):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    time.sleep(float(os.environ.get("FORK_DELAY", "0")))


def worker_exit(arbiter: Any, worker: Any) -> None:  # noqa: ANN401  gunicorn has no type hints
    """Log that gunicorn called this hook."""
    arbiter.log.info("worker %d has exited", worker.pid)
