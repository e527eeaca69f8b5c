"""Measure password hashing alone. A login cannot take less time than its password hash."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from argon2 import PasswordHasher

from app.security import MAX_CONCURRENT_HASHES
from app.settings import Settings
from benchmarks.servers import WORKERS

PASSWORD = "correct horse battery staple"  # noqa: S105  of users who do not exist


def argon2() -> PasswordHasher:
    """Return a hasher with the service's default parameters."""
    defaults = Settings.model_construct()
    return PasswordHasher(defaults.argon2_time_cost, defaults.argon2_memory_kib, defaults.argon2_parallelism)


def hashes_per_second(seconds: float) -> float:
    """Measure password verifications per second, with as many processes and threads as the service uses."""
    # Use `spawn` on every system and Python version, so that the results are comparable. The function that the
    # processes run must not be in `__main__`, because the processes cannot import that module.
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as executor:
        return sum(executor.map(_count_verifications, [seconds] * WORKERS)) / seconds


def _count_verifications(seconds: float) -> int:
    hasher = argon2()
    password_hash = hasher.hash(PASSWORD)
    deadline = time.monotonic() + seconds

    def verify(_: int) -> int:
        count = 0
        while time.monotonic() < deadline:
            hasher.verify(password_hash, PASSWORD)
            count += 1
        return count

    with ThreadPoolExecutor(MAX_CONCURRENT_HASHES) as executor:
        return sum(executor.map(verify, range(MAX_CONCURRENT_HASHES)))
