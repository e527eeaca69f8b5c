"""Create the server hooks that gunicorn.conf.py needs in addition to the worker class."""

from collections.abc import Callable
from typing import Any, NamedTuple

from hitless.accept import clear_slot, raise_file_limit
from hitless.checks import StartupError, abort_startup, check_startup, pidfile_problems
from hitless.drain import drain_on_sigterm
from hitless.limits import Limits
from hitless.master import Supervisor, block_signals_during_fork
from hitless.refusals import RenderRefusal, plain_text

Arbiter = Any  # gunicorn has no type hints
Worker = Any


class Hooks(NamedTuple):
    """gunicorn's server hooks, in the order in which gunicorn calls them."""

    on_starting: Callable[[Arbiter], None]
    when_ready: Callable[[Arbiter], None]
    pre_fork: Callable[[Arbiter, Worker], None]
    child_exit: Callable[[Arbiter, Worker], None]


def hooks(
    *,
    drain_seconds: float = 0,
    limits: Limits = Limits(),  # noqa: B008  immutable
    render_refusal: RenderRefusal = plain_text,
) -> Hooks:
    """Create the server hooks. In gunicorn.conf.py, assign each hook to a variable of the same name.

    Args:
        drain_seconds: Seconds to keep serving after SIGTERM. During this time, `is_draining()` returns True, so that
            readiness checks can fail and load balancers stop sending traffic.
        limits: The limits that apply to each connection.
        render_refusal: Renders the response to a request that the server rejects.
    """

    def on_starting(arbiter: Arbiter) -> None:
        raise_file_limit()
        try:
            check_startup(arbiter)
        except StartupError as error:
            abort_startup(arbiter, str(error))

    def when_ready(arbiter: Arbiter) -> None:
        block_signals_during_fork()
        Supervisor(arbiter)
        drain_on_sigterm(arbiter, drain_seconds)
        for problem in pidfile_problems:
            arbiter.log.warning(problem)

    def pre_fork(_: Arbiter, worker: Worker) -> None:
        worker.has_hooks = True
        worker.limits = limits
        worker.render_refusal = render_refusal

    def child_exit(_: Arbiter, worker: Worker) -> None:
        clear_slot(worker.age)

    return Hooks(on_starting, when_ready, pre_fork, child_exit)
