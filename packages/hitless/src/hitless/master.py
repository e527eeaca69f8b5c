"""Replace workers without an outage. This code runs in gunicorn's master process. `drain.py` handles the shutdown.

On its own, gunicorn stops a worker before it starts the replacement, which is called the successor here. If no
successor can start, no worker is left. Possible reasons are an incorrectly renewed certificate, a process limit or a
broken release. With hitless, a worker serves until its successor accepts connections, however long that takes.
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

# Signals that the master sends to stop a worker.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# Maximum delay between attempts to start a worker, in seconds. The delay starts at one second and doubles after each
# failure.
MAX_DELAY = 30.0

Arbiter = Any  # gunicorn has no type hints
Worker = Any


def block_signals_during_fork() -> None:
    """Make workers react to stop signals from the moment they are forked. Call this once, in the master.

    A forked worker inherits the master's signal handlers, which do not stop the worker. If a stop signal arrived before
    the worker set its own handlers, the worker would keep running, and the master would wait for it forever. Stop
    signals are therefore blocked during the fork. The worker restores the default handlers, then unblocks the signals.
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
    """Replaces gunicorn's methods for starting and stopping workers. Only the master creates an instance."""

    def __init__(self, arbiter: Arbiter) -> None:
        self._arbiter = arbiter
        self._spawn_worker = arbiter.spawn_worker
        self._reap_workers = arbiter.reap_workers
        self._reload = arbiter.reload
        self._setup = arbiter.setup
        self._failures = self._starts = self._outdated_age = 0
        self._next_start = self._next_kill = 0.0
        self._is_reloading = False
        arbiter.manage_workers = self.manage_workers
        # gunicorn's `reload` calls `spawn_worker` to start all workers at the same time. Make the arbiter's
        # `spawn_worker` a no-op, because `manage_workers` starts the workers.
        arbiter.spawn_worker = lambda: None
        arbiter.reap_workers = self.reap_workers
        arbiter.reload = self.reload
        arbiter.setup = self.setup
        master_heartbeat[0] = time.monotonic()

    def manage_workers(self) -> None:
        """Keep the configured number of workers running and replace outdated ones. gunicorn calls this every second."""
        master_heartbeat[0] = time.monotonic()
        if starts[0] != self._starts:
            self._starts, self._failures = starts[0], 0
        if not is_stopping():
            number = self._arbiter.num_workers
            active = list(self._active_workers())
            successors = number - sum(not self._is_outdated(worker) for worker in active)
            # Replace outdated workers one at a time, so that this needs only one extra worker. Even a stopping worker
            # uses memory and may hold database connections.
            room = number + 1 - len(self._arbiter.WORKERS)
            for _ in range(max(number - len(active), min(successors, room))):
                self.spawn_worker()
        self._stop_surplus()

    def spawn_worker(self) -> None:
        """Start a worker. After a failed attempt, further calls do nothing until a delay has passed."""
        if time.monotonic() < self._next_start:
            return
        try:
            check_tls(self._arbiter.cfg)  # check in the master, so that not every worker logs the problem
            self._spawn_worker()
        except (StartupError, OSError, RuntimeError) as error:  # such as a process limit or a missing `worker_tmp_dir`
            self._delay_next_start(f"A worker cannot be started: {error}")

    def reap_workers(self) -> None:
        """Reap workers that have exited. If a worker failed to start, delay the next start.

        Raises:
            HaltServer: A worker exited with a startup error, and no worker has ever started. gunicorn then exits.
        """
        master_heartbeat[0] = time.monotonic()
        before = dict(self._arbiter.WORKERS)
        try:
            self._reap_workers()
        except HaltServer:
            if not starts[0]:
                raise
            os.kill(os.getpid(), signal.SIGCHLD)  # triggers another call, which reaps other exited workers
        gone = [worker for pid, worker in before.items() if pid not in self._arbiter.WORKERS]
        for worker in gone:
            worker.tmp.close()  # gunicorn leaves it open if the worker failed to start
        if not is_stopping() and any(worker.phase == Phase.STARTING and not worker.is_stopped for worker in gone):
            self._delay_next_start("A worker has failed to start")
        if self._is_reloading:  # until the old workers have exited, gunicorn calls only this method
            # Call `murder_workers` at most once per second. The first call makes a stuck worker log its stack trace,
            # and the second call kills the worker.
            if time.monotonic() >= self._next_kill:
                self._next_kill = time.monotonic() + 1
                self._arbiter.murder_workers()
            self.manage_workers()

    def reload(self) -> None:
        """Reload the configuration and replace all workers. If the configuration is invalid, change nothing."""
        master, app, outdated_age = os.getpid(), self._arbiter.app, self._outdated_age
        configuration = app.cfg
        self._outdated_age = self._arbiter.worker_age
        self._next_start = 0.0
        self._is_reloading = True
        try:
            self._reload()
        except SystemExit:  # gunicorn exits if the configuration is invalid
            if os.getpid() != master:  # this process is a worker that was forked during the reload
                raise
            app.cfg, self._outdated_age = configuration, outdated_age
            self._arbiter.log.error("The configuration cannot be loaded, so nothing was reloaded")  # noqa: TRY400  no traceback
        except StartupError as error:
            app.cfg, self._outdated_age = configuration, outdated_age
            self._arbiter.log.error("Nothing was reloaded: %s", error)  # noqa: TRY400  no traceback
        except Exception:  # for example, the pidfile cannot be written. gunicorn would stop at once
            self._arbiter.log.exception("The reload is incomplete, but the workers are replaced")
        finally:
            self._is_reloading = False

    def setup(self, app: Any) -> None:  # noqa: ANN401  gunicorn has no type hints
        """Apply a reloaded configuration, unless its addresses have changed.

        gunicorn changes addresses by closing all its sockets and binding again. If binding fails, gunicorn cannot start
        any more workers. Binding always fails for a current TCP address, because the old workers still listen on it.

        Raises:
            StartupError: The addresses have changed.
        """
        if app.cfg.address != self._arbiter.address:
            raise StartupError("to change the addresses (`bind`), restart the server")
        self._setup(app)

    def _active_workers(self) -> Iterator[Worker]:
        for worker in self._arbiter.WORKERS.values():
            if worker.phase != Phase.STOPPING and not worker.is_stopped:
                yield worker

    def _is_outdated(self, worker: Worker) -> bool:
        return bool(worker.age <= self._outdated_age or worker.phase == Phase.AT_MAX_REQUESTS)

    def _stop_surplus(self) -> None:
        """Stop outdated and surplus workers, as long as enough other workers accept connections."""
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
        if time.monotonic() < self._next_start:  # another worker has already failed in this attempt
            return
        delay = min(2.0**self._failures, MAX_DELAY)
        self._failures += 1
        self._next_start = time.monotonic() + delay
        self._arbiter.log.error("%s. The next attempt is in %d s.", problem, delay)
