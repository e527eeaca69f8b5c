"""Our worker where uvloop is not installed."""

from typing import Any, ClassVar

from app.server.worker import DrainingWorker


class AsyncioWorker(DrainingWorker):
    """The same, on Python's own event loop."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {**DrainingWorker.CONFIG_KWARGS, "loop": "asyncio"}
