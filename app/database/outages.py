"""Log database outages."""

import asyncio
from collections import Counter
from contextvars import Context

import structlog
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.database.fast import FastReader
from app.settings import Settings

log = structlog.stdlib.get_logger("app.database")

OUTAGE_SECONDS = 30.0


class OutageLog:
    """Logs the first failure of an outage, a summary at most every 30 seconds, and the end of the outage."""

    def __init__(self, settings: Settings, reader: FastReader) -> None:
        self._reader = reader
        timeout, size = settings.database_pool_timeout, settings.database_pool_size
        self._pool_timeout = f"no connection was free for {timeout:g} s (DATABASE_POOL_SIZE={size})"
        self._is_waiting = False
        self._reasons = Counter[str]()
        self._latest_reason = ""

    @property
    def is_ongoing(self) -> bool:
        """Return whether an outage is ongoing: its start has been logged, but its end has not."""
        return self._is_waiting

    def add(self, error: Exception) -> None:
        """Record an error caused by a database outage."""
        message = self._pool_timeout if isinstance(error, PoolTimeoutError) else getattr(error, "orig", error)
        reason = f"{type(getattr(error, 'driver_exception', error)).__name__}: {message}"
        self._reasons[reason] += 1
        self._latest_reason = reason
        if not self._is_waiting:
            self._report()

    def _report(self) -> None:
        """Log the failures since the last report. Repeat this every 30 seconds, until there are no new failures."""
        self._is_waiting = bool(self._reasons)
        if not self._reasons:
            log.info("no database failures", seconds=OUTAGE_SECONDS)
            return
        log.warning(
            "database unavailable",
            reason=self._latest_reason,
            failures=self._reasons.total(),
            reasons=[f"{number} x {reason}" for reason, number in self._reasons.most_common(3)],
            waiting=self._reader.waiting,
        )
        self._reasons.clear()
        # Run the next report in an empty context. The report covers many requests, so its log line must not contain the
        # id of this one.
        asyncio.get_running_loop().call_later(OUTAGE_SECONDS, self._report, context=Context())
