"""Memory that the master and its workers share, because it is allocated before the fork."""

from enum import IntEnum
from mmap import mmap

# How often a worker has started to accept.
starts = memoryview(mmap(-1, 4)).cast("I")
# When the master's loop ran last, by the monotonic clock, in seconds; 0.0 without hitless' hooks.
master_heartbeat = memoryview(mmap(-1, 8)).cast("d")
# 1 once a worker has logged that the master does not respond.
heartbeat_loss_logged = mmap(-1, 1)


class Phase(IntEnum):
    """What a worker does. Each has a byte of its own, which the master reads."""

    STARTING = 0
    ACCEPTING = 1
    AT_MAX_REQUESTS = 2  # accepts until its successor does
    STOPPING = 3
