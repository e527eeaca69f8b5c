"""The worker on asyncio's own event loop, as on machines without uvloop."""

from typing import Any, ClassVar

import hitless


class AsyncioWorker(hitless.Worker):
    """The worker without uvloop."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {**hitless.Worker.CONFIG_KWARGS, "loop": "asyncio"}
