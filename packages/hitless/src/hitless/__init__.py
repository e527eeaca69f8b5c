"""A gunicorn worker for ASGI applications that can be stopped, reloaded and replaced without losing a request."""

import sys

from hitless.checks import StartupError, abort_startup, load_application, usable_pidfile
from hitless.cpus import CPUs, available_cpus
from hitless.drain import is_draining
from hitless.memory import Memory, available_memory
from hitless.processes import available_processes
from hitless.refusals import Refusal, RefusalResponse, RenderRefusal, plain_text
from hitless.stderr import LogStream, log_stream

__all__ = [
    "CPUs",
    "Hooks",
    "Limits",
    "LogStream",
    "Memory",
    "Refusal",
    "RefusalResponse",
    "RenderRefusal",
    "StartupError",
    "Worker",
    "abort_startup",
    "available_cpus",
    "available_memory",
    "available_processes",
    "hooks",
    "is_draining",
    "load_application",
    "log_stream",
    "plain_text",
    "usable_pidfile",
]

# On Windows, gunicorn cannot be imported. Omit the modules that need gunicorn, so that an application can still import
# hitless.
if sys.platform != "win32":
    from hitless.hooks import Hooks, hooks
    from hitless.limits import Limits
    from hitless.worker import Worker
