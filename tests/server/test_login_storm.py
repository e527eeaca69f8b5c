"""Many logins at once, each of which takes a lot of memory and time, leave enough of both for others."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from processes import PATIENCE

from app.security import CONCURRENT_HASHES
from app.settings import Settings
from tests.conftest import NO_LIMIT
from tests.people import PASSWORD
from tests.server.conftest import Gunicorn, Start

LOGINS = 12
HASH_KIB = Settings.model_fields["argon2_memory_kib"].default


def most_memory(server: Gunicorn) -> int:
    """The most that the one worker has ever taken, KiB."""
    (worker,) = re.findall(r"Started server process \[(\d+)\]", server.log)
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{worker}/status").read_text())
    return int(kib)


def test_a_login_storm_starves_nobody(impatient: Start) -> None:
    server = impatient(RATE_LIMIT=NO_LIMIT, RATE_LIMIT_LOGIN=NO_LIMIT)
    ann = {"email": "ann@example.com", "password": PASSWORD}

    def log_in(_: int) -> int:
        return httpx.post(f"{server.url}/auth/login", json=ann, timeout=PATIENCE).status_code

    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client, ThreadPoolExecutor(LOGINS) as crowd:
        client.post("/users/", json=ann | {"full_name": "Ann"})
        auth = {"Authorization": f"Bearer {client.post('/auth/login', json=ann).json()['access_token']}"}
        after_one = most_memory(server)
        logins = [crowd.submit(log_in, number) for number in range(LOGINS)]
        answers = [client.get(path, headers=auth) for path in ("/health", "/users/me")]
        still_running = sum(not login.done() for login in logins)

        assert [answer.status_code for answer in answers] == [200, 200]
        assert still_running > 0
        assert [login.result() for login in logins] == [200] * LOGINS
    assert most_memory(server) < after_one + CONCURRENT_HASHES * HASH_KIB
