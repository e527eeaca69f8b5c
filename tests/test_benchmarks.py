"""The benchmark compares like with like: the limit answers what the service answers."""

from datetime import timedelta

import httpx
import pytest

from app.security import Tokens
from benchmarks import servers
from benchmarks.__main__ import FIRST_EMAIL, PASSWORD, add_users


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
