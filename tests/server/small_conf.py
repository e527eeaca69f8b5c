"""What gunicorn.conf.py does for our worker, without the rest."""

import atexit
import os
import time
from typing import Any

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
    """Holds a new worker, where the environment says so, before it has signal handlers of its own."""
    server.log.info("forked")
    atexit.register(server.log.info, "worker %d is at its end", worker.pid)
    time.sleep(float(os.environ.get("SLEEPS_AFTER_FORK", "0")))


def worker_exit(server: Any, worker: Any) -> None:  # noqa: ANN401  gunicorn has no types
    """Leaves a trace."""
    server.log.info("worker %d has exited", worker.pid)
