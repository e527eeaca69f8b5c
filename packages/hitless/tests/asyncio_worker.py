"""hitless's worker on asyncio's own event loop, which is also used if uvloop is not installed."""

from typing import Any, ClassVar

import hitless


class AsyncioWorker(hitless.Worker):
    """A worker that does not use uvloop."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {**hitless.Worker.CONFIG_KWARGS, "loop": "asyncio"}
