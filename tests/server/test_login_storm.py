"""Many concurrent logins, which are expensive, leave enough memory and CPU time for other requests."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from gunicorn_process import Gunicorn, Start
from processes import TIMEOUT

from app import PREFIX
from app.settings import Settings
from tests.conftest import NO_LIMIT
from tests.people import PASSWORD

LOGINS = 12
CONCURRENT_HASHES = 2  # per worker; see app/security.py
HASH_KIB = Settings.model_fields["argon2_memory_kib"].default


def peak_memory(server: Gunicorn) -> int:
    """Return the peak memory usage of the single worker, in KiB."""
    (worker,) = re.findall(r"Started server process \[(\d+)\]", server.log)
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{worker}/status").read_text())
    return int(kib)


def test_concurrent_logins_use_bounded_memory_and_do_not_block_others(start_service: Start) -> None:
    server = start_service(RATE_LIMIT=NO_LIMIT, RATE_LIMIT_LOGIN=NO_LIMIT)
    ann = {"email": "ann@example.com", "password": PASSWORD}

    def log_in(_: int) -> int:
        return httpx.post(f"{server.url}{PREFIX}/auth/login", json=ann, timeout=TIMEOUT).status_code

    with httpx.Client(base_url=server.url + PREFIX, timeout=TIMEOUT) as client, ThreadPoolExecutor(LOGINS) as executor:
        client.post("/users/", json=ann | {"full_name": "Ann"})
        auth = {"Authorization": f"Bearer {client.post('/auth/login', json=ann).json()['access_token']}"}
        after_one = peak_memory(server)
        logins = [executor.submit(log_in, number) for number in range(LOGINS)]
        responses = [client.get(path, headers=auth) for path in ("/health", "/users/me")]
        still_running = sum(not login.done() for login in logins)

        assert [response.status_code for response in responses] == [200, 200]
        assert still_running > 0
        assert [login.result() for login in logins] == [200] * LOGINS
    assert peak_memory(server) < after_one + CONCURRENT_HASHES * HASH_KIB
