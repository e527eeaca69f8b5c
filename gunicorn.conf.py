"""The production server: gunicorn, running Uvicorn workers.

Names, values and variables are the usual ones; where one is not, a comment says why. README.md explains each.
"""

import gc
import logging
import os
import sys
from pathlib import Path
from typing import Any

import anyio
from fastapi.routing import iter_route_contexts

from app import NAME
from app.errors import StartupError
from app.lifespan import prepare
from app.middleware.security_headers import strict_headers
from app.server.balance import forget
from app.server.checks import check_address, check_certificate, check_connections
from app.server.cpus import available_cpus
from app.server.drain import drain_on_sigterm
from app.server.logs import configure_logging, log_config
from app.server.protocol import LimitedProtocol
from app.server.uncaught import log_what_nothing_catches
from app.server.worker import lose_no_signal_while_forking, replace_before_leaving
from app.settings import Settings, load_settings

log_what_nothing_catches()
try:
    settings = load_settings()
except SystemExit as problem:
    configure_logging(Settings.model_construct())  # the defaults: one line, in the form that all the others have
    logging.getLogger("app").critical(str(problem))
    sys.exit(1)
cpus = available_cpus()

# Server socket
bind = f"0.0.0.0:{settings.server.port}"  # PORT
backlog = 2048

# Worker processes
# Not `uvicorn.workers.UvicornWorker`: it is deprecated, and drops requests whenever it is stopped or replaced.
worker_class = "app.server.worker.DrainingWorker"
# Not `multiprocessing.cpu_count()`: it counts the host's processors, not what the container may use of them.
workers = settings.server.web_concurrency or cpus.number * 2 + 1  # WEB_CONCURRENCY
worker_connections = 1000  # of no effect on Uvicorn workers
max_requests = settings.server.max_requests  # MAX_REQUESTS; by default 1000
max_requests_jitter = settings.server.max_requests_jitter  # MAX_REQUESTS_JITTER; by default 100
# The heartbeat files: a read-only root file system leaves only this, and a real disk may block a worker for long.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  gunicorn makes unguessable names

# Timeouts, each with room for those before it: DATABASE_STATEMENT_TIMEOUT (5), Uvicorn's wait for its last requests
# (25, see app/server/worker.py), graceful_timeout (30), stop_grace_period in docker-compose.production.yml (40).
timeout = 30
keepalive = 5
graceful_timeout = 30

# Logging
accesslog = "-"
errorlog = "-"
loglevel = settings.log.level  # LOG_LEVEL
# Of no effect on Uvicorn workers. The application's own access line has all of its fields; see app/middleware/.
access_log_format = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %(D)s'
logconfig_dict = log_config(settings)  # one form for the lines of gunicorn, Uvicorn and the application

# Process naming; takes the setproctitle package
proc_name = NAME

# Server mechanics
# The application is loaded before the fork, which saves memory and finds errors once. So SIGHUP starts new workers
# but loads no new code, and the application opens its connections in the lifespan, never at import.
preload_app = True
daemon = False
# Nothing inside a container reads it, so a read-only root file system with no /tmp does without.
pidfile = "/tmp/gunicorn.pid" if os.access("/tmp", os.W_OK) else None  # noqa: S108  gunicorn renames another file to it
# Only root can become someone else: anyone else would fail in chown, and on a laptop USER is just the login.
user = os.getenv("USER") if os.geteuid() == 0 else None
group = os.getenv("GROUP") if os.geteuid() == 0 else None
tmp_upload_dir = None
# By default gunicorn opens a socket for remote control in the home directory, which a container does not have.
control_socket_disable = True

# Proxies whose X-Forwarded-For and X-Forwarded-Proto are believed
forwarded_allow_ips = ",".join(settings.server.forwarded_allow_ips)  # FORWARDED_ALLOW_IPS

# The path below which a proxy serves the application, and which it takes off
root_path = settings.server.root_path  # ROOT_PATH

# SSL (if needed)
keyfile = str(settings.server.ssl_keyfile) if settings.server.ssl_keyfile else None  # SSL_KEYFILE
certfile = str(settings.server.ssl_certfile) if settings.server.ssl_certfile else None  # SSL_CERTFILE

# What is no request is answered before the application hears of it, and with the same headers.
LimitedProtocol.headers_of_refusals = strict_headers(hsts=settings.in_production and certfile is not None)


def on_starting(server: Any) -> None:  # noqa: ANN401  gunicorn has no types
    """Makes sure, once for all workers, that they will be able to start; else ends with one line."""
    app = server.app.wsgi()
    try:
        if settings.server.ssl_certfile and settings.server.ssl_keyfile:
            check_certificate(settings.server.ssl_certfile, settings.server.ssl_keyfile)
        # A master that replaces another (SIGUSR2) or is started by systemd inherits its sockets.
        if not {"GUNICORN_PID", "LISTEN_FDS"} & os.environ.keys():
            for host, port in server.address:
                check_address(host, port)
        # anyio's `run` loads what FastAPI needs of anyio. Each worker would do so by itself, in 10 ms.
        anyio.run(prepare, app.state.settings)
        if advice := anyio.run(check_connections, settings.database, server.num_workers):
            server.log.warning(advice)
    except StartupError as error:
        server.log.critical(str(error))
        if server.pidfile:
            server.pidfile.unlink()
        sys.exit(1)
    app.state.prepared = True


def when_ready(server: Any) -> None:  # noqa: ANN401  gunicorn has no types
    """Says what was decided, and why, before the first worker is forked."""
    # FastAPI prepares its routes at the first request. Each worker would do so by itself, in 20 ms.
    list(iter_route_contexts(server.app.wsgi().routes))
    # What is loaded by now stays as long as the process: a worker does not copy it to collect garbage.
    gc.freeze()
    lose_no_signal_while_forking()
    replace_before_leaving(server)
    drain_on_sigterm(server, settings.server.drain_seconds)
    source = "WEB_CONCURRENCY" if settings.server.web_concurrency else f"2 x {cpus.number} CPUs + 1, by {cpus.source}"
    # Each worker is replaced before it leaves, so there may be one more.
    connections = (server.num_workers + 1) * settings.database.connections
    server.log.info("%d workers (%s), at most %d database connections", server.num_workers, source, connections)


def child_exit(_server: Any, worker: Any) -> None:  # noqa: ANN401  gunicorn has no types
    """Forgets the connections of a worker that has ended, which it may not have done itself."""
    forget(worker.age)
