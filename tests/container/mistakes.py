"""The service with mistakes in it, to see what the log makes of them; mounted into containers."""

import asyncio
import ctypes
import os
import threading
import warnings

from app.main import app

SECRET = "postgresql://user:hunter2@db/app"


def fail() -> None:
    raise ValueError(f"cannot connect to {SECRET}")


class Fails:
    def __del__(self) -> None:
        fail()


@app.get("/mistakes/{kind}")
async def mistakes(kind: str) -> None:
    """Makes a mistake."""
    match kind:
        case "an error in a route":
            fail()
        case "an error in a task":
            task = asyncio.create_task(asyncio.to_thread(fail))
            await asyncio.wait([task])
        case "an error in a thread":
            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()
        case "an error in __del__":
            Fails()
        case "a warning":
            warnings.warn(f"no longer use {SECRET}", DeprecationWarning, stacklevel=1)
        case "a crash in C":
            ctypes.string_at(0)
        case "an exit":
            os._exit(7)
