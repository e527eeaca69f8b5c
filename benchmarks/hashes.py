"""Password hashing alone: what a login cannot do without."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from argon2 import PasswordHasher

from app.security import CONCURRENT_HASHES
from app.settings import AuthSettings
from benchmarks.servers import WORKERS

PASSWORD = "correct horse battery staple"  # noqa: S105  of users who do not exist


def argon2() -> PasswordHasher:
    """The hasher with the parameters that the service has by default."""
    settings = AuthSettings()
    return PasswordHasher(settings.argon2_time_cost, settings.argon2_memory_kib, settings.argon2_parallelism)


def hashes_per_second(seconds: float) -> float:
    """Verifies passwords and does nothing else, in as many processes and threads as the service."""
    # Spawned on every version of Python and every system. What is spawned cannot find a function of `__main__`.
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as executor:
        return sum(executor.map(_verify, [seconds] * WORKERS)) / seconds


def _verify(seconds: float) -> int:
    hasher = argon2()
    password_hash = hasher.hash(PASSWORD)
    deadline = time.monotonic() + seconds

    def verify(_: int) -> int:
        count = 0
        while time.monotonic() < deadline:
            hasher.verify(password_hash, PASSWORD)
            count += 1
        return count

    with ThreadPoolExecutor(CONCURRENT_HASHES) as executor:
        return sum(executor.map(verify, range(CONCURRENT_HASHES)))
