"""One form for every log line, whoever wrote it: gunicorn, Uvicorn, a library or the application."""

import contextlib
import json
import logging
import logging.config
import re
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from app.settings import Settings

# What must not be seen, and what is shown instead; looked for only in lines that hold the first word, as most do not.
_SECRETS = (
    # Greedy on purpose: a password may hold any character, and one hidden word too many does no harm.
    ("://", re.compile(r"(://[^\s:/@]*:)\S+@"), r"\1***@"),
    # PostgreSQL adds the row that broke a constraint, with all of its values. First as a JSON string has it.
    ("DETAIL:", re.compile(r'\\nDETAIL:(?:[^"\\]|\\.)*|\nDETAIL:.*'), ""),
    # What was searched for, which stands in the statement; see _page in app/users/service.py.
    ("LIKE ", re.compile(r"(LIKE (?:lower\()?)'(?:[^']|'')*'"), r"\1'***'"),
)
# Made once, where `json.dumps` would make one for each line.
_encode = json.JSONEncoder(default=repr).encode


def configure_logging(settings: Settings) -> None:
    """Makes `structlog`, `logging` and `warnings` write as `log_config` says. May be called again."""
    logging.config.dictConfig(log_config(settings))
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *_describe(), *_render(settings)],
        logger_factory=_StderrLogger,
        wrapper_class=structlog.make_filtering_bound_logger(settings.log.level),
        cache_logger_on_first_use=True,
    )


class _StderrLogger:
    """Writes the application's own lines. By way of `logging`, as libraries do, each would take four times as long."""

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, line: str) -> None:
        """Writes a finished line, or drops it, as `logging` does: a full disk is no reason to fail a request."""
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{line}\n")

    debug = info = warning = error = critical = write


def log_config(settings: Settings) -> dict[str, Any]:
    """Gives the configuration for `logging.config.dictConfig`, and so for gunicorn's `logconfig_dict`.

    Lines go to standard error: standard output belongs to commands that print a result.
    """
    level = settings.log.level.upper()
    log = {"handlers": ["stderr"], "level": level, "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "structlog": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": [
                    structlog.contextvars.merge_contextvars,
                    *_describe(),
                    structlog.stdlib.ExtraAdder(),
                ],
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    *_render(settings),
                ],
            }
        },
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "structlog"}
        },
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            # uvicorn-worker copies the handlers of gunicorn's loggers, so these have their own.
            "gunicorn.error": log,
            "gunicorn.access": log,
            "uvicorn": log,
            "uvicorn.error": log,
            # Each migration is reported by our own env.py; Alembic has a few lines more at every start.
            "alembic": {"level": "WARNING"},
            # At debug it writes each statement's values, with addresses and hashes.
            "aiosqlite": {"level": "INFO"},
            # The access line is the application's own, written by its middleware as `app.access`.
            "uvicorn.access": {"handlers": [], "propagate": False},
        },
    }


def _wants_json(settings: Settings) -> bool:
    if settings.log.format is None:
        return settings.in_production or not sys.stderr.isatty()
    return settings.log.format == "json"


def _describe() -> list[Processor]:
    return [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _render(settings: Settings) -> list[Processor]:
    return [*(_json() if _wants_json(settings) else _console()), _hide_secrets]


def _json() -> list[Processor]:
    # Local variables stay out of tracebacks: among them are passwords and tokens.
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(tracebacks),
        _without_uvicorns_colours,
        _as_json,
    ]


def _console() -> list[Processor]:
    return [
        _without_uvicorns_colours,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), sort_keys=False, exception_formatter=structlog.dev.plain_traceback
        ),
    ]


def _without_uvicorns_colours(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Uvicorn sends each message twice, the second time with terminal colours."""
    event.pop("color_message", None)
    return event


def _as_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """Writes the line in the order in which one reads."""
    first = {key: event.pop(key, None) for key in ("timestamp", "level", "logger", "event")}
    return _encode({**first, **event})


def _hide_secrets(_logger: WrappedLogger, _method: str, line: EventDict) -> str:
    """Works on the finished line, so that no field, message or traceback is forgotten."""
    text = str(line)
    for word, pattern, shown in _SECRETS:
        if word in text:
            text = pattern.sub(shown, text)
    return text
