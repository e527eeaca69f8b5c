"""How many workers, and how many password hashes at a time, fit into the CPUs and the memory of the container."""

from typing import NamedTuple

from hitless import CPUs, Memory

from app.security import MAX_CONCURRENT_HASHES
from app.settings import Settings

MIB = 2**20
# Measured by the drills in tests/container/test_memory.py: gunicorn's master with everything that workers share, and
# what each worker needs besides hashes and request bodies, with 100 clients.
MASTER = 64 * MIB
WORKER = 48 * MIB


# Processes and threads of a worker at most: itself, those that hash passwords, and Python's and a driver's own threads,
# such as for name lookups.
THREADS = 12


class Capacity(NamedTuple):
    """How many workers to run, how many passwords each may hash at a time, and their peak memory.

    Attributes:
        workers: Worker processes.
        hashes: Passwords that each worker hashes at a time.
        needed: Bytes of memory that they need at most.
        description: For the log: the numbers, and what decides them.
        warning: What to set if they do not fit, or an empty string.
    """

    workers: int
    hashes: int
    needed: int
    description: str
    warning: str


def check_process_limit(workers: int, limit: int | None) -> str:
    """Return what to do if the workers do not fit into the limit on processes and threads, or an empty string.

    A worker that cannot start a thread cannot hash passwords, so that logins are 503.
    """
    needed = 1 + (workers + 1) * THREADS  # with the master, and a worker that is just replaced
    if limit is None or needed <= limit:
        return ""
    return f"{workers} workers may need {needed} processes and threads, but the limit is {limit}: raise it (`pids`)"


def plan_capacity(settings: Settings, cpus: CPUs, memory: Memory) -> Capacity:
    """Choose the numbers that are not set, so that the service does not itself exhaust the memory."""
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
