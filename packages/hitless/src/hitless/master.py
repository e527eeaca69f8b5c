"""Changes to gunicorn's master process, other than its shutdown."""

import os
import signal
from typing import Any

# The signals with which the master stops a worker.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

Arbiter = Any  # gunicorn has no type hints


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


def start_successors_early(arbiter: Arbiter) -> None:
    """Make the master start the successor of a worker before that worker leaves. Call it once, in the master.

    gunicorn starts it after the worker has exited, which takes a second. With two workers, half of the capacity would
    be missing for that long, each time a worker has served `max_requests`.
    """
    manage_workers = arbiter.manage_workers

    def manage_with_successors() -> None:
        leaving = sum(worker.state.leaving[0] for worker in arbiter.WORKERS.values())
        if leaving:
            arbiter.num_workers += leaving
        manage_workers()
        if leaving:
            arbiter.num_workers -= leaving

    arbiter.manage_workers = manage_with_successors
