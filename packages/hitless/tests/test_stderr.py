"""A worker is not blocked if the reader of standard error stalls. Lines that do not fit are counted."""

import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hitless.stderr import LogStream, log
from processes import TIMEOUT

LINE = "x" * 99  # 100 bytes with the line feed


class Pipe(NamedTuple):
    """A pipe that replaces standard error, and a log stream that writes to the pipe."""

    reader: int
    stream: LogStream

    def write(self, line: str, times: int = 1) -> None:
        for _ in range(times):
            self.stream.write(f"{line}\n")

    def read(self) -> list[str]:
        """Read all lines that are currently in the pipe."""
        text = ""
        os.set_blocking(self.reader, False)
        while True:
            try:
                text += os.read(self.reader, 1_000_000).decode()
            except BlockingIOError:
                return text.splitlines()


def dropped(lines: list[str]) -> int:
    """Return how many lines were dropped, as reported in the log."""
    warning = r"^(\d+) log lines were dropped because standard error was not read$"
    return sum(int(number) for line in lines for number in re.findall(warning, line))


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    reader, writer = os.pipe()
    with open(writer, "w") as stderr:  # noqa: PTH123  not a path, but a descriptor
        stream = LogStream(stderr)
        handler = logging.StreamHandler(stream)
        monkeypatch.setattr(log, "propagate", False)
        log.addHandler(handler)
        yield Pipe(reader, stream)
        log.removeHandler(handler)
    os.close(reader)


def test_lines_are_written_to_the_pipe(pipe: Pipe) -> None:
    pipe.write("one")
    pipe.write("two")

    assert pipe.read() == ["one", "two"]


def test_lines_that_do_not_fit_are_counted_and_their_number_is_logged(pipe: Pipe) -> None:
    pipe.write(LINE, times=5000)  # half a megabyte, so a blocking write would never return

    lines = pipe.read()
    pipe.write("after")
    lines += pipe.read()

    assert 100 < lines.count(LINE) < 5000
    assert lines.count(LINE) + dropped(lines) == 5000
    assert lines[-1] == "after"


def test_rest_of_a_long_line_is_written_before_the_next_one(pipe: Pipe) -> None:
    pipe.write("a" * 100_000)
    pipe.write("dropped, because nothing was read")
    text = "".join(pipe.read())
    pipe.write("after")

    assert text + "\n".join(pipe.read()) == (
        "a" * 100_000 + "\n1 log lines were dropped because standard error was not read\nafter"
    )


def test_number_is_kept_until_it_fits(pipe: Pipe) -> None:
    pipe.write(LINE, times=5000)
    before = os.read(pipe.reader, 4096).decode()  # makes room for a page in the pipe
    pipe.write(LINE, times=1000)
    pipe.write("y" * 60_000)

    lines = (before + "\n".join(pipe.read())).splitlines()
    pipe.write("after")
    lines += pipe.read()

    assert lines.count(LINE) + dropped(lines) == 6001
    assert lines[-1] == "after"


def test_number_that_no_handler_takes_does_not_block() -> None:
    """If a logger has no handler, `logging` itself writes its warnings to standard error, which could block."""
    flood = "import hitless; [hitless.log_stream.write('x' * 100) for _ in range(10_000)]"
    with subprocess.Popen([sys.executable, "-c", flood], stderr=subprocess.PIPE) as process:
        assert process.wait(TIMEOUT) == 0


def test_standard_error_that_is_no_pipe_is_written_as_usual(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = io.StringIO()
    reader, writer = os.pipe()
    stream = LogStream()
    with (tmp_path / "log").open("w") as file, open(writer, "w") as pipe:  # noqa: PTH123  not a path, but a descriptor
        for stderr in (text, pipe, file):
            monkeypatch.setattr(sys, "stderr", stderr)
            stream.write("a line\n")
            stream.flush()

        assert text.getvalue() == (tmp_path / "log").read_text() == os.read(reader, 1000).decode() == "a line\n"
    os.close(reader)
