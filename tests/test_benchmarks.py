"""The benchmark compares like with like: the limit answers what the service answers."""

import subprocess
import sys
from datetime import timedelta

import httpx
import pytest

from app.security import Tokens
from benchmarks import servers
from benchmarks.__main__ import FIRST_EMAIL, add_users
from benchmarks.hashes import PASSWORD, hashes_per_second
from benchmarks.login_timing import mann_whitney
from tests.conftest import ROOT


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_limit_answers_what_the_service_answers(database_url: str) -> None:
    day = timedelta(days=1)
    token = Tokens(secret_key=servers.SECRET_KEY, access_lifetime=day, refresh_lifetime=day).issue(1)
    auth = {"Authorization": f"Bearer {token}"}
    add_users(database_url, 1, 200)

    with servers.limit(database_url) as limit, servers.service(database_url) as service:
        login = httpx.post(f"{service.url}/auth/login", json={"email": FIRST_EMAIL, "password": PASSWORD}, timeout=60)
        answers = [
            [httpx.get(server.url + path, headers=auth, timeout=60).json() for server in (limit, service)]
            for path in ("/health/live", "/users/me", "/users/?limit=100")
        ]

    assert login.status_code == 200
    assert [bound for bound, _ in answers] == [ours for _, ours in answers]
    assert len(answers[-1][0]["items"]) == 100


def test_bare_hashes_are_counted_in_processes_of_their_own() -> None:
    assert hashes_per_second(1) > 0


def test_the_time_of_failed_logins_is_compared(clean_environment: dict[str, str]) -> None:
    """Two of each kind tell nothing apart; what is seen here is that it runs."""
    command = [sys.executable, "-m", "benchmarks.login_timing", "--samples=2"]

    lines = subprocess.check_output(command, env=clean_environment, cwd=ROOT, text=True, timeout=60).splitlines()

    assert sum("median" in line for line in lines) == 3
    assert sum("p = " in line for line in lines) == 3
    assert lines[-1] == "They cannot be told apart."


def test_times_that_differ_are_told_from_times_that_do_not() -> None:
    even, odd, later = [[start + 2.0 * number for number in range(50)] for start in (0, 1, 60)]

    assert mann_whitney(even, odd) > 0.5
    assert mann_whitney(even, later) < 0.001
