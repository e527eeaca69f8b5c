"""Puts into the log what Python would print in a form of its own: the errors that nothing has caught.

Whoever searches the log would miss such lines, and nothing would mask the passwords in them.
"""

import logging
import sys
import threading
from types import TracebackType

log = logging.getLogger("app")


def log_what_nothing_catches() -> None:
    """To be called once, in the master: the workers inherit it."""
    sys.excepthook = _log_the_end
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_the_end_of_a_thread


def _log_the_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("uncaught exception", exc_info=(kind, error, trace))


def _log_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """As in `__del__`, where there is nobody to raise it to."""
    # Python 3.14 names the object in its message, others apart.
    message = unraisable.err_msg or f"Exception ignored in {unraisable.object!r}"
    log.error("%s", message, exc_info=unraisable.exc_value)


def _log_the_end_of_a_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:  # an orderly way to end a thread
        name = args.thread.name if args.thread else None
        log.error("uncaught exception in thread %s", name, exc_info=args.exc_value)
