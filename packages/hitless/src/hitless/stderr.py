"""A stream for log lines that never blocks, even if standard error is not read."""

import contextlib
import logging
import os
import stat
import sys
from threading import RLock
from typing import TextIO

log = logging.getLogger("hitless.stderr")
# Without a handler, `logging` would write this logger's warnings directly to standard error, which might block.
log.addHandler(logging.NullHandler())


class LogStream:
    """Write log lines to standard error. Drop them if standard error is a pipe and the pipe is full.

    A pipe usually holds 64 KiB. It fills up if its reader, for example a log driver, stalls. A worker that is
    blocked on a full pipe cannot serve requests. The number of dropped lines is logged before the next line that fits.

    Args:
        stream: The stream to use instead of standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._given = stream
        self._lock = RLock()  # reentrant, because a signal handler may log during a write
        self._stream: TextIO | None = None
        self._pipe = -1
        self._dropped = 0
        self._rest = b""

    def write(self, line: str) -> None:
        """Write a line. If it does not fit into the pipe, count it as dropped."""
        with self._lock:
            stream = self._given or sys.stderr
            if self._stream is not stream:
                self._open_pipe(stream)
            if self._pipe < 0:
                stream.write(line)
            elif not (self._write_rest() and self._report_dropped() and self._write(line.encode(errors="replace"))):
                self._dropped += 1

    def flush(self) -> None:
        """Flush the stream, unless it is a pipe: writes to a pipe are not buffered, so there is nothing to flush."""
        if self._pipe < 0:
            (self._given or sys.stderr).flush()

    def _open_pipe(self, stream: TextIO) -> None:
        """If the stream is a pipe, open it a second time in non-blocking mode.

        Setting O_NONBLOCK on the original descriptor would affect every process that shares it.
        """
        if self._pipe >= 0:
            os.close(self._pipe)
        self._stream, self._pipe, self._rest = stream, -1, b""
        # If this fails, `write` uses the stream itself. Possible reasons: the stream is not a file, the pipe belongs to
        # another user, or the system is not Linux and has no /proc.
        with contextlib.suppress(OSError, ValueError):
            number = stream.fileno()
            if stat.S_ISFIFO(os.fstat(number).st_mode):
                self._pipe = os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_NONBLOCK)

    def _write_rest(self) -> bool:
        """Write the remainder of a partially written line. Return whether the line is now complete."""
        return not self._rest or (self._write(self._rest) and not self._rest)

    def _report_dropped(self) -> bool:
        """Log the number of dropped lines, if any. Return False if that log line did not fit into the pipe."""
        if self._dropped:
            number, self._dropped = self._dropped, 0
            log.warning("%d log lines were dropped because standard error was not read", number)
            if self._dropped:  # this message did not fit and was dropped as well
                self._dropped = number
                return False
        return True

    def _write(self, data: bytes) -> bool:
        """Write as much as fits into the pipe, and keep the rest for later. Return whether anything was written."""
        try:
            written = os.write(self._pipe, data)
        except BlockingIOError:
            return False
        self._rest = data[written:]
        return True


log_stream = LogStream()
