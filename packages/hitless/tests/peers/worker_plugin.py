"""A pytest plugin that runs uvicorn-worker's test suite on hitless's worker, with longer timeouts."""

import os
import subprocess
import time
from types import SimpleNamespace
from typing import IO, Any

import hitless
import pytest
import uvicorn_worker  # type: ignore[import-untyped]  # it has no type hints

# Maximum number of seconds that gunicorn may take to start or to exit. The suite's own timeouts are too short: on a
# busy machine, the suite could send a signal before gunicorn has started.
TIMEOUT = 60


class PatientProcess(subprocess.Popen[bytes]):
    """A replacement for the suite's `Process`. `poll` first waits until the application has started or has exited."""

    output: IO[bytes]

    def __init__(self, arguments: list[str], *, stdout: IO[bytes], **options: Any) -> None:  # noqa: ANN401  passed to Popen
        super().__init__(arguments, stdout=stdout, **options)
        self.log = stdout

    def poll(self) -> int | None:
        deadline = time.monotonic() + TIMEOUT
        # Use `pread`, because it does not move the file offset, which is shared with gunicorn.
        while super().poll() is None and b"startup complete" not in os.pread(self.log.fileno(), 100_000, 0):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return super().poll()

    def wait(self, timeout: float | None = None) -> int:
        return super().wait(timeout and TIMEOUT)

    def read_output(self) -> str:
        return os.pread(self.log.fileno(), 1_000_000, 0).decode()


def pytest_configure() -> None:
    uvicorn_worker.UvicornWorker = hitless.Worker


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    module = items[0].getparent(pytest.Module).obj  # type: ignore[union-attr]
    module.Process = PatientProcess
    module.time = SimpleNamespace(sleep=lambda seconds: time.sleep(2 * seconds))
