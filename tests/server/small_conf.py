"""What gunicorn.conf.py does for our worker, without the rest."""

import atexit
import os
import resource
import time
from typing import Any

from app.server.balance import forget
from app.server.drain import drain_on_sigterm
from app.server.worker import lose_no_signal_while_forking, replace_before_leaving

worker_class = "app.server.worker.DrainingWorker"
control_socket_disable = True


def when_ready(server: Any) -> None:  # noqa: ANN401  gunicorn has no types
    """As in gunicorn.conf.py."""
    lose_no_signal_while_forking()
    replace_before_leaving(server)
    drain_on_sigterm(server, int(os.environ.get("DRAIN_SECONDS", "0")))


def post_fork(server: Any, worker: Any) -> None:  # noqa: ANN401  gunicorn has no types
    """Where the environment says so, limits a worker's files, and holds it before it has its own signal handlers."""
    server.log.info("forked")
    atexit.register(server.log.info, "worker %d is at its end", worker.pid)
    if files := int(os.environ.get("FILES", "0")):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    time.sleep(float(os.environ.get("SLEEPS_AFTER_FORK", "0")))


def worker_exit(server: Any, worker: Any) -> None:  # noqa: ANN401  gunicorn has no types
    """Leaves a trace."""
    server.log.info("worker %d has exited", worker.pid)


def child_exit(_server: Any, worker: Any) -> None:  # noqa: ANN401  gunicorn has no types
    """As in gunicorn.conf.py."""
    forget(worker.age)
