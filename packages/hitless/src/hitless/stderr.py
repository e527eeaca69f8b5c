"""A stream for log lines that never waits for the reader of standard error."""

import contextlib
import logging
import os
import stat
import sys
from threading import RLock
from typing import TextIO

log = logging.getLogger("hitless.stderr")


class LogStream:
    """Writes log lines to standard error, and to a pipe only as far as they fit.

    If the reader of a pipe stalls, such as a log driver, the pipe is full after 64 KiB. A worker that waited for it
    would serve nobody. Here lines that do not fit are dropped, and their number is logged before the next line that
    does.

    Args:
        stream: A stream in the place of standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._given = stream
        self._lock = RLock()  # a signal handler may log while a line is written
        self._stream: TextIO | None = None
        self._pipe = -1
        self._dropped = 0
        self._rest = b""

    def write(self, line: str) -> None:
        """Write a whole line, or count it."""
        with self._lock:
            stream = self._given or sys.stderr
            if self._stream is not stream:
                self._open_pipe(stream)
            if self._pipe < 0:
                stream.write(line)
            elif not (self._write_rest() and self._report_dropped() and self._write(line.encode(errors="replace"))):
                self._dropped += 1

    def flush(self) -> None:
        """Do what `logging` expects after each line. A pipe has no buffer here."""
        if self._pipe < 0:
            (self._given or sys.stderr).flush()

    def _open_pipe(self, stream: TextIO) -> None:
        """Open the pipe once more, without blocking. The file that the process has is shared with others."""
        if self._pipe >= 0:
            os.close(self._pipe)
        self._stream, self._pipe, self._rest = stream, -1, b""
        # The stream may be no file, the pipe may belong to another user, and only Linux has /proc.
        with contextlib.suppress(OSError, ValueError):
            number = stream.fileno()
            if stat.S_ISFIFO(os.fstat(number).st_mode):
                self._pipe = os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_NONBLOCK)

    def _write_rest(self) -> bool:
        """Write the rest of a line that did not fit as a whole, and return whether nothing of it is left."""
        return not self._rest or (self._write(self._rest) and not self._rest)

    def _report_dropped(self) -> bool:
        """Log how many lines were dropped, and return whether that fitted."""
        if self._dropped:
            number, self._dropped = self._dropped, 0
            log.warning("%d log lines were dropped because standard error was not read", number)
            if self._dropped:  # this line, too
                self._dropped = number
                return False
        return True

    def _write(self, data: bytes) -> bool:
        """Write as much as fits, keep the rest, and return whether anything was written."""
        try:
            written = os.write(self._pipe, data)
        except BlockingIOError:
            return False
        self._rest = data[written:]
        return True


log_stream = LogStream()
