"""Choose the number of workers and of concurrent password hashes to fit the container's CPUs and memory."""

from typing import NamedTuple

from hitless import CPUs, Memory

from app.security import MAX_CONCURRENT_HASHES
from app.settings import Settings

MIB = 2**20
# Memory usage of gunicorn's master and of each worker, measured with 100 clients and checked by
# tests/container/test_memory.py. The master's figure includes all memory that it shares with the workers. A worker's
# figure excludes the memory used for password hashing and request bodies.
MASTER = 64 * MIB
WORKER = 48 * MIB


# Estimated number of threads per worker: the main thread, those that hash passwords, those of the database driver, and
# those that the event loop starts to look up host names.
THREADS = 12


class Capacity(NamedTuple):
    """The number of workers, the number of concurrent password hashes in each worker, and the peak memory.

    Attributes:
        workers: Number of worker processes.
        hashes: Maximum number of concurrent password hashes per worker.
        needed: Peak memory, in bytes, of the master and all workers.
        description: A log message with the number of workers, the reason for this number, and the peak memory.
        warning: If there is not enough memory, a log message that names the settings to change; otherwise empty.
    """

    workers: int
    hashes: int
    needed: int
    description: str
    warning: str


def check_process_limit(workers: int, limit: int | None) -> str:
    """Return a warning if the workers might exceed the limit on processes and threads, otherwise an empty string.

    A worker that cannot start a thread cannot hash passwords, and responds to login requests with 503.
    """
    needed = 1 + (workers + 1) * THREADS  # the master, and one extra worker while another is being replaced
    if limit is None or needed <= limit:
        return ""
    return f"{workers} workers may need {needed} processes and threads, but the limit is {limit}: raise it (`pids`)"


def plan_capacity(settings: Settings, cpus: CPUs, memory: Memory) -> Capacity:
    """Choose the number of workers, and of concurrent hashes per worker, to fit the CPUs and memory.

    WEB_CONCURRENCY and ARGON2_CONCURRENCY take precedence.
    """
    hash_size = settings.argon2_memory_kib * 1024

    def needs(workers: int, hashes: int) -> int:
        return MASTER + workers * (WORKER + settings.max_total_body_size + hashes * hash_size)

    def max_workers(hashes: int) -> int:
        return max(1, (memory.size - MASTER) // (needs(1, hashes) - MASTER))

    by_cpus, by_memory = 2 * cpus.number + 1, max_workers(settings.argon2_concurrency or 1)
    workers = settings.web_concurrency or min(by_cpus, by_memory)
    hashes = settings.argon2_concurrency or next(
        (number for number in range(MAX_CONCURRENT_HASHES, 1, -1) if needs(workers, number) <= memory.size), 1
    )
    needed = needs(workers, hashes)
    if settings.web_concurrency:
        reason = "WEB_CONCURRENCY"
    elif by_cpus <= by_memory:
        reason = f"2 x {cpus.number} CPUs + 1, by {cpus.source}"
    else:
        reason = f"by {memory.source}"
    size = f"{needed // MIB} of {memory.size // MIB} MiB of memory"
    warning = ""
    if needed > memory.size:
        warning = (
            f"{workers} workers may need {size}: set WEB_CONCURRENCY to at most {max_workers(1)}"
            " and ARGON2_CONCURRENCY to 1, or raise the limit"
        )
    return Capacity(workers, hashes, needed, f"{workers} workers ({reason}), at most {size}", warning)
