"""The service in a container as most tests run it, and what they ask of it."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
from processes import PATIENCE, until

from tests.container.engine import Container, json_lines
from tests.container.load import Target

PERSON = {"email": "ann@example.com", "password": "correct horse battery staple", "full_name": "Ann"}
CREDENTIALS = {name: PERSON[name] for name in ("email", "password")}
SETTINGS = {
    "WEB_CONCURRENCY": "2",
    "SECRET_KEY": "a secret key for tests, of 32 bytes or more",
    "RATE_LIMIT": "1000000/minute",
    "LOG_LEVEL": "info",
}
# What makes the migrations fail: a table of that name is there already.
SPOIL = "CREATE TABLE users (id int)"
SLOW = ["--volume", f"{Path(__file__).with_name('slow.py')}:/app/slow.py:ro"]


def options(**settings: str) -> list[str]:
    """The `--env` options of `docker run`."""
    return [f"--env={name}={value}" for name, value in {**SETTINGS, **settings}.items()]


def slow_service(*arguments: str) -> tuple[str, ...]:
    """The command that serves the slow routes too, where the options have SLOW."""
    return ("gunicorn", "slow:app", "-c", "gunicorn.conf.py", *arguments)


def get(container: Container, path: str) -> httpx.Response:
    return httpx.get(f"http://{container.ip}:8000{path}", timeout=PATIENCE)


def ask(background: ThreadPoolExecutor, container: Container, path: str) -> Future[httpx.Response]:
    """Sends a request to a slow route, and returns when it has arrived there."""
    answer = background.submit(get, container, path)
    until(lambda: "slow request" in container.log, "the request has arrived")
    return answer


def targets(container: Container, host: str = "", port: int = 8000) -> list[Target]:
    """A route that touches nothing and a route that asks the database, at a container or whatever is before it."""
    url = f"http://{container.ip}:8000"
    httpx.post(f"{url}/users/", json=PERSON, timeout=PATIENCE)
    tokens = httpx.post(f"{url}/auth/login", json=CREDENTIALS, timeout=PATIENCE).json()
    auth = {"Authorization": f"Bearer {tokens['access_token']}"}
    address = (host or container.ip, port)
    return [Target(*address, "/health/live"), Target(*address, "/users/me", auth)]


def workers(container: Container) -> int:
    """How many have started so far."""
    return container.log.count("Application startup complete.")


def events(container: Container, level: str) -> list[str]:
    """What the log says at a level."""
    return [line["event"] for line in json_lines(container.log) if line["level"] == level]
