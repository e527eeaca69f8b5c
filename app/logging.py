"""Configure one format for the log lines of gunicorn, Uvicorn, the libraries and the application."""

import asyncio
import contextlib
import json
import logging
import logging.config
import re
import sys
import threading
from collections.abc import Callable
from contextvars import Context
from time import monotonic
from types import TracebackType
from typing import Any, NoReturn

import hitless
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from app.settings import Settings


def _mask_password(url: re.Match[str]) -> str:
    """Mask the password in a URL. A password may contain an `@`, so it ends at the last `@`."""
    credentials, at, host = url[0].rpartition("@")
    user = re.search(r"://[^:/@]*:", credentials)
    return f"{credentials[: user.end()]}***@{host}" if at and user else url[0]


# Each entry consists of a fixed string, a pattern that matches secrets next to that string, and their replacement. To
# save time, the pattern is applied only to text that contains the string. Patterns must match in linear time.
_SECRETS: tuple[tuple[str, re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    ("://", re.compile(r"(?<!\S)\S*?://\S*"), _mask_password),
    # Remove PostgreSQL's DETAIL line, because it may contain all values of a row that violates a constraint. In the
    # `repr` of an error, the line feed is escaped, so match a backslash and an `n` too.
    ("DETAIL:", re.compile(r"(?:\n|\\n)DETAIL:.*"), ""),
    # Mask LIKE patterns, because they contain the search term passed to `list_users` in app/users/service.py. The term
    # may be a name or an email address.
    ("LIKE ", re.compile(r"(LIKE (?:lower\()?)'(?:[^']|'')*'"), r"\1'***'"),
)
# Maximum length, in characters, of a client-controlled field in a log line.
MAX_FIELD = 512
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0)) if code != ord("\n")}
# Created once, because `json.dumps` with options such as `default` creates an encoder on each call.
_encode = json.JSONEncoder(default=repr).encode


def configure_logging(settings: Settings) -> None:
    """Configure `structlog`, `logging` and `warnings`. It is safe to call this function more than once."""
    logging.config.dictConfig(log_config(settings))
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *_add_metadata(), *_render(settings)],
        logger_factory=_StderrLogger,
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        cache_logger_on_first_use=True,
    )


def exit_with_error(message: str) -> NoReturn:
    """Log why the settings are invalid, in the same format as every other log line, and exit with status 1."""
    configure_logging(Settings.model_construct())  # the default settings
    logging.getLogger("app").critical(message)
    sys.exit(1)


class _StderrLogger:
    """Writes the application's own log lines directly. The `logging` module would take four times as long per line."""

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, line: str) -> None:
        """Write a line. If this fails, drop the line, as `logging` does: a full disk must not make requests fail."""
        with contextlib.suppress(OSError):
            hitless.log_stream.write(f"{line}\n")

    debug = info = warning = error = critical = write


class RefusalLog(logging.Filter):
    """Limits how many lines per second are logged about requests that exceed a rate limit or are not counted.

    For example, malformed requests are rejected before the rate limiter counts them. Without this filter, a client
    could flood the log until log rotation deletes older lines. The number of dropped lines is logged.
    """

    def __init__(self, lines_per_second: int) -> None:
        super().__init__()
        self._limit = lines_per_second
        self._second = 0
        self._passed = self._dropped = 0

    def filter(self, _: logging.LogRecord) -> bool:
        """Return whether a record may be logged. `logging` calls this method."""
        return self.allow()

    def allow(self) -> bool:
        """Return whether one more line may be logged. If not, count the line as dropped."""
        second = int(monotonic())
        if second != self._second:
            self._second, self._passed = second, 0
        if self._passed < self._limit:
            self._passed += 1
            return True
        if not self._dropped:
            # Run the report in an empty context. The report covers many requests, so its log line must not contain the
            # id of this one.
            asyncio.get_running_loop().call_later(1, self._report, context=Context())
        self._dropped += 1
        return False

    def _report(self) -> None:
        structlog.stdlib.get_logger("app.access").warning(
            "some requests outside of rate limits were not logged", number=self._dropped
        )
        self._dropped = 0


refusal_log = RefusalLog(lines_per_second=10)


def shorten(text: str) -> str:
    """Truncate text from a client so that it takes up at most 512 characters in a log line."""
    # To save time, encode only text that may be too long. JSON encodes one character as at most twelve: two escapes,
    # for example `\ud83d\ude00`.
    while len(text) * 12 > MAX_FIELD and (size := len(_encode(text))) > MAX_FIELD:
        text = text[: len(text) * MAX_FIELD // size]
    return text


def log_config(settings: Settings) -> dict[str, Any]:
    """Return the configuration for `logging.config.dictConfig`. gunicorn also uses it, as `logconfig_dict`.

    Log lines go to standard error, because standard output is for the results of commands.
    """
    level = settings.log_level.upper()
    to_stderr = {"handlers": ["stderr"], "level": level, "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"refusals": {"()": lambda: refusal_log}},
        "formatters": {
            "structlog": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": [
                    structlog.contextvars.merge_contextvars,
                    *_add_metadata(),
                    structlog.stdlib.ExtraAdder(),
                ],
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    _drop_color_message,  # only Uvicorn adds it, through `logging`
                    *_render(settings),
                ],
            }
        },
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "stream": "ext://hitless.log_stream", "formatter": "structlog"}
        },
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            # uvicorn-worker copies the handlers of gunicorn's logger to Uvicorn's loggers, so gunicorn's logger needs a
            # handler.
            "gunicorn.error": to_stderr,
            "uvicorn": to_stderr,
            "uvicorn.error": to_stderr,
            "hitless": {**to_stderr, "filters": ["refusals"]},
            # Disable these loggers: the application's middleware writes its own access log to `app.access`.
            "gunicorn.access": {"handlers": [], "propagate": False},
            "uvicorn.access": {"handlers": [], "propagate": False},
            # app/migrations/env.py already logs each migration. At INFO level, Alembic logs a few extra lines at each
            # startup.
            "alembic": {"level": "WARNING"},
            # At DEBUG level, aiosqlite logs the parameters of SQL statements, including email addresses and password
            # hashes.
            "aiosqlite": {"level": "INFO"},
            # At INFO level, httpx logs the full URL of each request, and URLs often contain tokens.
            "httpx": {"level": "WARNING"},
            # At DEBUG level, httpcore logs the headers of each response, including cookies.
            "httpcore": {"level": "INFO"},
        },
    }


def _wants_json(settings: Settings) -> bool:
    if settings.log_format is None:
        return settings.is_production or not sys.stderr.isatty()
    return settings.log_format == "json"


def _add_metadata() -> list[Processor]:
    return [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _render(settings: Settings) -> list[Processor]:
    return _render_json() if _wants_json(settings) else _render_console()


def _render_json() -> list[Processor]:
    # Omit local variables, which may contain passwords and tokens.
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(tracebacks), _encode_json]


def _render_console() -> list[Processor]:
    return [
        _escape_control_characters,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), sort_keys=False, exception_formatter=structlog.dev.plain_traceback
        ),
        _mask_line,
    ]


def _drop_color_message(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Drop Uvicorn's second copy of each message, which contains terminal color codes."""
    event.pop("color_message", None)
    return event


def _escape_control_characters(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace control characters with hexadecimal escapes. Keep line feeds, because messages may span several lines."""
    return {key: value.translate(_ESCAPES) if isinstance(value, str) else value for key, value in event.items()}


def _encode_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    first = {key: event.pop(key, None) for key in ("timestamp", "level", "logger", "event")}
    line = _encode({**first, **event})
    if any(word in line for word, *_ in _SECRETS):
        # Mask each value separately. Applied to the whole line, a pattern could match across values and leave
        # invalid JSON.
        line = _encode(_mask_values(json.loads(line)))
    return line


def _mask_values(value: Any) -> Any:  # noqa: ANN401  any JSON value
    match value:
        case str():
            # PostgreSQL's DETAIL may quote values that contain line feeds, so remove everything from DETAIL on.
            return _mask(re.split(r"(?:\n|\\n)DETAIL:", value, maxsplit=1)[0])
        case dict():
            return {_mask(key): _mask_values(item) for key, item in value.items()}
        case list():
            return [_mask_values(item) for item in value]
        case _:
            return value


def _mask_line(_logger: WrappedLogger, _method: str, line: EventDict) -> str:
    """Mask secrets in the rendered log line, which contains every field, message and traceback."""
    return _mask(str(line))


def _mask(text: str) -> str:
    for word, pattern, replacement in _SECRETS:
        if word in text:
            text = pattern.sub(replacement, text)
    return text


def log_uncaught_exceptions() -> None:
    """Install hooks that log uncaught exceptions. Python would print them in another format, without masking secrets.

    Call this once, in gunicorn's master, before the workers are forked.
    """
    log = logging.getLogger("app")

    def log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        log.critical("uncaught exception", exc_info=(kind, error, traceback))

    def log_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
        # In Python 3.14, `err_msg` often includes the object's name. It may be None, for example in earlier versions.
        message = unraisable.err_msg or f"Exception ignored in {unraisable.object!r}"
        log.error("%s", message, exc_info=unraisable.exc_value)

    def log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit:
            name = args.thread.name if args.thread else None
            log.error("uncaught exception in thread %s", name, exc_info=args.exc_value)

    sys.excepthook = log_uncaught
    sys.unraisablehook = log_unraisable
    threading.excepthook = log_uncaught_in_thread
