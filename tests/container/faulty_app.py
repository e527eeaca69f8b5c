"""The service with an additional route that triggers bugs. Tests mount this file into a container to check the log."""

import asyncio
import ctypes
import os
import threading
import warnings

from app import PREFIX
from app.main import app

SECRET = "postgresql://user:hunter2@db/app"


def fail() -> None:
    raise ValueError(f"cannot connect to {SECRET}")


class FailsWhenDeleted:
    def __del__(self) -> None:
        fail()


@app.get(PREFIX + "/bugs/{kind}")
async def bugs(kind: str) -> None:
    """Trigger a bug of this kind."""
    match kind:
        case "error in a route":
            fail()
        case "error in a task":
            task = asyncio.create_task(asyncio.to_thread(fail))
            await asyncio.wait([task])
        case "error in a thread":
            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()
        case "error in __del__":
            FailsWhenDeleted()
        case "warning":
            warnings.warn(f"deprecated: {SECRET}", DeprecationWarning, stacklevel=1)
        case "segmentation fault":
            ctypes.string_at(0)
        case "exit":
            os._exit(7)
