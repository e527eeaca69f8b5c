"""Run the service in a container, with common settings, and send requests to it."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
from processes import TIMEOUT

from app import PREFIX
from tests.conftest import NO_LIMIT, RATE_LIMITS
from tests.container.engine import Container, run_container
from tests.container.load import Target

PERSON = {"email": "ann@example.com", "password": "correct horse battery staple", "full_name": "Ann"}
CREDENTIALS = {name: PERSON[name] for name in ("email", "password")}
SETTINGS = {
    "WEB_CONCURRENCY": "2",
    "SECRET_KEY": "a secret key for tests, of 32 bytes or more",
    **dict.fromkeys(map(str.upper, RATE_LIMITS), NO_LIMIT),
    "LOG_LEVEL": "info",
}
# Makes the first migration fail, because it creates a table with this name.
CONFLICTING_TABLE = "CREATE TABLE users (id int)"
# Mounts slow_app.py into a container that runs `slow_command()`.
SLOW_APP = f"--volume={Path(__file__).with_name('slow_app.py')}:/app/slow_app.py:ro"


def options(**settings: str) -> list[str]:
    """Return the common and the given settings as `docker run` options."""
    return [f"--env={name}={value}" for name, value in {**SETTINGS, **settings}.items()]


def slow_command(*arguments: str) -> tuple[str, ...]:
    """Return the command that serves the application with its slow routes."""
    return ("gunicorn", "slow_app:app", "-c", "gunicorn.conf.py", *arguments)


@contextmanager
def run_service(image: str, *docker_options: str, command: Sequence[str] = (), **settings: str) -> Iterator[Container]:
    """Run the service, and wait until all workers accept requests."""
    with run_container(image, *options(**settings), *docker_options, command=command) as container:
        wait_for_workers(container, int({**SETTINGS, **settings}["WEB_CONCURRENCY"]))
        yield container


def wait_for_workers(container: Container, number: int) -> None:
    """Wait until this many workers have started in total, including those that have exited since."""
    container.wait_for_log("Application startup complete.", times=number)


def count_started_workers(container: Container) -> int:
    return container.log.count("Application startup complete.")


def api(container: Container) -> str:
    """Return the URL of the API at the container's IP address."""
    return f"http://{container.ip}:8000{PREFIX}"


def get(container: Container, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.get(api(container) + path, headers=headers, timeout=TIMEOUT)


def get_in_background(executor: ThreadPoolExecutor, container: Container, path: str) -> Future[httpx.Response]:
    """Send a request to a slow route in a thread, and return its future once the application has received it."""
    response = executor.submit(get, container, path)
    container.wait_for_log("slow request")
    return response


def log_in(url: str) -> dict[str, str]:
    """Log in, and return the Authorization header."""
    response = httpx.post(f"{url}/auth/login", json=CREDENTIALS, timeout=TIMEOUT)
    return {"Authorization": f"Bearer {response.json()['access_token']}"}


def make_targets(container: Container, host: str = "", port: int = 8000) -> list[Target]:
    """Return two requests for the load: one that does not use the database, and one that does.

    Args:
        container: The service, where the user of the second request is registered.
        host: The host to send requests to; by default the container's IP address.
        port: The port to send requests to.
    """
    url = api(container)
    httpx.post(f"{url}/users/", json=PERSON, timeout=TIMEOUT)
    address = (host or container.ip, port)
    return [Target(*address, f"{PREFIX}/health/live"), Target(*address, f"{PREFIX}/users/me", log_in(url))]
