"""Changes to gunicorn's master process, other than its shutdown.

gunicorn stops a worker and then starts its successor. If the start fails, no worker serves: a certificate that was
renewed wrongly, a limit on processes or a broken release is then an outage. With hitless, a worker serves until its
successor accepts connections, however long that takes.
"""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

from gunicorn.errors import HaltServer  # type: ignore[import-untyped]  # it has no type hints

from hitless.checks import StartupError, check_tls
from hitless.drain import is_stopping
from hitless.shared import Phase, master_heartbeat, starts

# The signals with which the master stops a worker.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# Seconds between two attempts to start a worker: 1, 2, 4, and so on up to this number.
MAX_DELAY = 30.0

Arbiter = Any  # gunicorn has no type hints
Worker = Any


def block_signals_during_fork() -> None:
    """Let a worker be stopped from the moment it is forked. Call it once, in the master.

    Until a worker has set its own handlers, it has the master's, which only queue the signal for the master's loop. A
    server that is stopped while it starts would wait for that worker forever.
    """
    os.register_at_fork(before=_block_signals, after_in_parent=_unblock_signals, after_in_child=_reset_signals)


def _block_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


def _reset_signals() -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    _unblock_signals()


class Supervisor:
    """Replaces the methods by which gunicorn starts and stops workers. Make it once, in the master."""

    def __init__(self, arbiter: Arbiter) -> None:
        self._arbiter = arbiter
        self._spawn_worker = arbiter.spawn_worker
        self._reap_workers = arbiter.reap_workers
        self._reload = arbiter.reload
        self._failures = self._starts = self._outdated_age = 0
        self._next_start = self._next_kill = 0.0
        self._is_reloading = False
        arbiter.manage_workers = self.manage_workers
        arbiter.spawn_worker = lambda: None  # gunicorn's reload would start all at once, before it calls manage_workers
        arbiter.reap_workers = self.reap_workers
        arbiter.reload = self.reload
        master_heartbeat[0] = time.monotonic()

    def manage_workers(self) -> None:
        """Start the workers that are missing, and stop those that have a successor. gunicorn calls it every second."""
        master_heartbeat[0] = time.monotonic()
        if starts[0] != self._starts:
            self._starts, self._failures = starts[0], 0
        if not is_stopping():
            number = self._arbiter.num_workers
            active = list(self._active_workers())
            successors = number - sum(not self._is_outdated(worker) for worker in active)
            # A worker that leaves still needs memory and may hold database connections. So that there is never more
            # than one worker too many, workers that have to be replaced wait for their turn, and serve until then.
            room = number + 1 - len(self._arbiter.WORKERS)
            for _ in range(max(number - len(active), min(successors, room))):
                self.spawn_worker()
        self._stop_surplus()

    def spawn_worker(self) -> None:
        """Start a worker, unless an attempt has failed a moment ago."""
        if time.monotonic() < self._next_start:
            return
        try:
            check_tls(self._arbiter.cfg)  # here, where a problem is one line for all workers
            self._spawn_worker()
        except (StartupError, OSError, RuntimeError) as error:  # such as a limit on processes, or no `worker_tmp_dir`
            self._delay_next_start(f"A worker cannot be started: {error}")

    def reap_workers(self) -> None:
        """Remove the workers that have exited. Retry a failed start, or end the server if none ever succeeded."""
        master_heartbeat[0] = time.monotonic()
        before = dict(self._arbiter.WORKERS)
        try:
            self._reap_workers()
        except HaltServer:
            if not starts[0]:
                raise
            os.kill(os.getpid(), signal.SIGCHLD)  # other workers may have exited too
        gone = [worker for pid, worker in before.items() if pid not in self._arbiter.WORKERS]
        for worker in gone:
            worker.tmp.close()  # gunicorn leaves it open if the worker has failed to start
        if not is_stopping() and any(worker.phase == Phase.STARTING and not worker.is_stopped for worker in gone):
            self._delay_next_start("A worker has failed to start")
        if self._is_reloading:  # gunicorn does nothing else until the old workers have exited
            if time.monotonic() >= self._next_kill:  # a second call sends SIGKILL: let the worker log its stack
                self._next_kill = time.monotonic() + 1
                self._arbiter.murder_workers()
            self.manage_workers()

    def reload(self) -> None:
        """Replace all workers, if the configuration can be loaded."""
        master, app, outdated_age = os.getpid(), self._arbiter.app, self._outdated_age
        configuration = app.cfg
        self._outdated_age = self._arbiter.worker_age
        self._next_start = 0.0
        self._is_reloading = True
        try:
            self._reload()
        except SystemExit:  # gunicorn ends the whole server if the configuration is invalid
            if os.getpid() != master:  # a worker that was forked here ends
                raise
            app.cfg, self._outdated_age = configuration, outdated_age
            self._arbiter.log.error("The configuration cannot be loaded, so nothing was reloaded")  # noqa: TRY400  one line
        finally:
            self._is_reloading = False

    def _active_workers(self) -> Iterator[Worker]:
        for worker in self._arbiter.WORKERS.values():
            if worker.phase != Phase.STOPPING and not worker.is_stopped:
                yield worker

    def _is_outdated(self, worker: Worker) -> bool:
        return bool(worker.age <= self._outdated_age or worker.phase == Phase.AT_MAX_REQUESTS)

    def _stop_surplus(self) -> None:
        """Stop workers that are outdated or too many, as long as enough others accept."""
        oldest = sorted(self._active_workers(), key=lambda worker: worker.age)
        outdated = [worker for worker in oldest if self._is_outdated(worker)]
        staying = [worker for worker in oldest if not self._is_outdated(worker)]
        accepting = sum(worker.accepts for worker in oldest)
        for worker in outdated + staying[: max(0, len(staying) - self._arbiter.num_workers)]:
            if not worker.accepts or accepting > self._arbiter.num_workers:
                accepting -= worker.accepts
                worker.is_stopped = True
                self._arbiter.kill_worker(worker.pid, signal.SIGTERM)

    def _delay_next_start(self, problem: str) -> None:
        if time.monotonic() < self._next_start:  # another worker of the same attempt has failed
            return
        delay = min(2.0**self._failures, MAX_DELAY)
        self._failures += 1
        self._next_start = time.monotonic() + delay
        self._arbiter.log.error("%s. The next attempt is in %d s.", problem, delay)
