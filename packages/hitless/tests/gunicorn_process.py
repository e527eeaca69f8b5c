"""Run gunicorn as a subprocess and read its log."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
from processes import TIMEOUT, until


class Gunicorn:
    """A running gunicorn process and its log file."""

    def __init__(self, folder: Path, environment: dict[str, str], port: int, arguments: list[str]) -> None:
        self.folder = folder
        self.address = ("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "log"
        program = Path(sys.executable).with_name("gunicorn")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [program, f"--bind=127.0.0.1:{port}", f"--pid={folder}/pid", *arguments],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for_log(self, text: str, times: int = 1) -> None:
        """Wait until the log contains `text` at least `times` times."""
        until(lambda: self.log.count(text) >= times or self.process.poll() is not None, f"{text!r} in the log")
        assert self.log.count(text) >= times, self.log

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the master."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait until the master exits, and return its exit code."""
        return self.process.wait(timeout=TIMEOUT)

    def stop(self) -> None:
        """Stop the master and its workers immediately. Unlike SIGKILL, SIGQUIT lets them save their coverage data."""
        with contextlib.suppress(ProcessLookupError):  # most servers have already exited
            os.killpg(self.process.pid, signal.SIGQUIT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=5)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=TIMEOUT)

    def get_in_background(self, executor: ThreadPoolExecutor, path: str) -> Future[httpx.Response]:
        """Send a request in a thread. Once the application has received it, return a future of the response."""
        response = executor.submit(self.get, path)
        self.wait_for_log("a request is waiting")
        return response


Start = Callable[..., Gunicorn]
