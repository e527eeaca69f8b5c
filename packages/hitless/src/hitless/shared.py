"""Memory that is allocated before the fork, so that the master and all workers share it."""

from enum import IntEnum
from mmap import mmap

# Total number of workers that have started accepting connections, including those that have exited.
starts = memoryview(mmap(-1, 4)).cast("I")
# The value of `time.monotonic()` at the last iteration of the master's main loop. It stays at 0.0 if gunicorn.conf.py
# does not use this package's hooks.
master_heartbeat = memoryview(mmap(-1, 8)).cast("d")
# 1 if a worker has already logged that the master is not responding, otherwise 0.
heartbeat_loss_logged = mmap(-1, 1)


class Phase(IntEnum):
    """The state of a worker. Each worker stores its phase in one byte of shared memory, where the master reads it."""

    STARTING = 0
    ACCEPTING = 1
    AT_MAX_REQUESTS = 2  # accepts connections until its replacement does
    STOPPING = 3
