"""The gunicorn.conf.py of the example application."""

import atexit
import os
import resource
import time
from typing import Any

import hitless

worker_class = "hitless.Worker"
control_socket_disable = True
on_starting, when_ready, pre_fork, child_exit = hitless.hooks(drain_seconds=int(os.environ.get("DRAIN_SECONDS", "0")))


def post_fork(server: Any, worker: Any) -> None:  # noqa: ANN401  gunicorn has no type hints
    """Limit the worker's open files, and delay it before it sets its own signal handlers, if the environment says so."""
    server.log.info("forked")
    atexit.register(server.log.info, "worker %d is at its end", worker.pid)
    if files := int(os.environ.get("FILES", "0")):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    time.sleep(float(os.environ.get("SLEEPS_AFTER_FORK", "0")))


def worker_exit(server: Any, worker: Any) -> None:  # noqa: ANN401  gunicorn has no type hints
    """Log that the hook was called."""
    server.log.info("worker %d has exited", worker.pid)
