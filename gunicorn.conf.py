"""The production server: gunicorn with Uvicorn workers.

Names, values and environment variables follow common practice. A comment gives the reason for each exception. Some
settings repeat a default or have no effect on Uvicorn workers. They are included, because operators look for them.
docs/server.md explains each setting.
"""

import gc
import os
import signal
import sys
from typing import Any

# The first process of a container does not receive SIGTERM until it has a handler for it. gunicorn installs its handler
# after `on_starting`. Without the handler below, a stop during the imports would have no effect, and the container
# would be killed later. SIGHUP runs this file again, and gunicorn's handler stays in place.
if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())

import anyio
import hitless
from fastapi.routing import iter_route_contexts

from app import NAME
from app.capacity import check_process_limit, plan_capacity
from app.errors import StartupError
from app.logging import exit_with_error, log_config, log_uncaught_exceptions
from app.middleware.refusals import render_refusal
from app.settings import load_settings
from app.startup import check_connection_limit, connections_per_worker, prepare_to_serve

log_uncaught_exceptions()
try:
    settings = load_settings()  # again at SIGHUP, which reloads this file
except SystemExit as error:
    if error.code is None:  # SIGTERM
        raise
    exit_with_error(str(error))
capacity = plan_capacity(settings, hitless.available_cpus(), hitless.available_memory())

# Server socket
host = f"[{settings.host}]" if ":" in settings.host else settings.host  # HOST; 0.0.0.0 by default
bind = f"{host}:{settings.port}"  # PORT; 8000 by default
backlog = 2048

# Worker processes
# Do not use `uvicorn.workers.UvicornWorker`: it is deprecated, and loses requests when it is stopped or replaced.
worker_class = "hitless.Worker"
# Do not use `multiprocessing.cpu_count()`: it counts the CPUs of the host, not those of the container. The container's
# memory also limits the number of workers.
workers = capacity.workers  # WEB_CONCURRENCY; 2 x CPUs + 1 by default
worker_connections = 1000  # has no effect on Uvicorn workers
max_requests = settings.max_requests  # MAX_REQUESTS; 1000 by default
max_requests_jitter = settings.max_requests_jitter  # MAX_REQUESTS_JITTER; 100 by default
# The directory of the heartbeat files. It is in memory, because a slow disk would block the workers. With a read-only
# root file system, it may also be the only writable directory.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  gunicorn creates unguessable names

# Each of these timeouts includes the previous one, so it must be longer: DATABASE_STATEMENT_TIMEOUT (5), the last
# requests of a worker (25, see packages/hitless), graceful_timeout (30), stop_grace_period in
# docker-compose.production.yml (40).
timeout = 30
keepalive = settings.keepalive_seconds  # KEEPALIVE_SECONDS; 5 by default
graceful_timeout = 30

# Logging
accesslog = "-"
errorlog = "-"
loglevel = settings.log_level  # LOG_LEVEL
# This has no effect on Uvicorn workers. The access log of the application contains all these fields; see
# app/middleware/.
access_log_format = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %(D)s'
logconfig_dict = log_config(settings)  # one format for the lines of gunicorn, Uvicorn and the application

# Process naming; requires the setproctitle package
proc_name = NAME

# Server mechanics
# Load the application before the fork. This saves memory, and reports errors only once. It also means that SIGHUP
# starts new workers without loading new code. The application must open its connections in the lifespan, never at
# import: otherwise the workers would share them.
preload_app = True
daemon = False
# Nothing in a container reads the pidfile, so omit it if /tmp is full or not writable.
pidfile = hitless.usable_pidfile("/tmp/gunicorn.pid")  # noqa: S108  gunicorn creates it by renaming another file
# If gunicorn is started as root, its workers run as USER. The image does not start it as root. Without root, ignore
# USER: it may just be the login name, and gunicorn would fail to change the user.
user = os.getenv("USER") if os.geteuid() == 0 else None
group = os.getenv("GROUP") if os.geteuid() == 0 else None
tmp_upload_dir = None
# By default, gunicorn creates a control socket in the home directory. The user of the container has none.
control_socket_disable = True

# Proxies whose X-Forwarded-For and X-Forwarded-Proto headers are trusted
forwarded_allow_ips = ",".join(settings.forwarded_allow_ips)  # FORWARDED_ALLOW_IPS

# Path prefix that a proxy strips
root_path = settings.root_path  # ROOT_PATH

# SSL (if needed)
keyfile = str(settings.ssl_keyfile) if settings.ssl_keyfile else None  # SSL_KEYFILE
certfile = str(settings.ssl_certfile) if settings.ssl_certfile else None  # SSL_CERTFILE

# Server hooks
hooks = hitless.hooks(
    drain_seconds=settings.drain_seconds,
    render_refusal=render_refusal(hsts=settings.is_production and certfile is not None),
)
pre_fork = hooks.pre_fork
child_exit = hooks.child_exit


def on_starting(server: Any) -> None:  # noqa: ANN401  gunicorn has no type hints
    """Check the address, the certificate and the database once for all workers. If a check fails, log it and exit."""
    hooks.on_starting(server)
    app = hitless.load_application(server)
    try:
        anyio.run(prepare_to_serve, settings)
        if warning := anyio.run(check_connection_limit, settings, server.num_workers):
            server.log.warning(warning)
    except StartupError as error:
        hitless.abort_startup(server, str(error))
    except RuntimeError as error:  # a thread cannot be started; gunicorn would not log this
        server.log.exception("startup failed")
        hitless.abort_startup(server, f"Cannot start: {error}")
    app.state.is_database_prepared = True
    app.state.settings = settings.model_copy(update={"argon2_concurrency": capacity.hashes})
    # FastAPI prepares its routes at the first request, which takes 20 ms. Prepare them here once, instead of in each
    # worker.
    list(iter_route_contexts(app.routes))


def when_ready(server: Any) -> None:  # noqa: ANN401  gunicorn has no type hints
    """Install hitless and log the capacity before the first worker is forked."""
    hooks.when_ready(server)
    # A worker's replacement starts before the worker stops, so there may be one extra worker.
    connections = (server.num_workers + 1) * connections_per_worker(settings)
    server.log.info("%s, and %d database connections", capacity.description, connections)
    for warning in (capacity.warning, check_process_limit(server.num_workers, hitless.available_processes())):
        if warning:
            server.log.warning(warning)
    # Exclude all objects loaded so far from garbage collection. They are never freed, but each collection in a worker
    # would write to their memory pages. The kernel would then copy these pages for the worker.
    gc.freeze()
