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
# A statement that makes the first migration fail, by creating a table that the migration also creates.
CONFLICTING_TABLE = "CREATE TABLE users (id int)"
# A `docker run` option that mounts slow_app.py into a container. The container's command must be `slow_command()`.
SLOW_APP = f"--volume={Path(__file__).with_name('slow_app.py')}:/app/slow_app.py:ro"


def options(**settings: str) -> list[str]:
    """Return the common settings and the given ones as `docker run` options."""
    return [f"--env={name}={value}" for name, value in {**SETTINGS, **settings}.items()]


def slow_command(*arguments: str) -> tuple[str, ...]:
    """Return the command that serves slow_app.py with gunicorn."""
    return ("gunicorn", "slow_app:app", "-c", "gunicorn.conf.py", *arguments)


@contextmanager
def run_service(image: str, *docker_options: str, command: Sequence[str] = (), **settings: str) -> Iterator[Container]:
    """Run the service, and wait until all workers accept requests."""
    with run_container(image, *options(**settings), *docker_options, command=command) as container:
        wait_for_workers(container, int({**SETTINGS, **settings}["WEB_CONCURRENCY"]))
        yield container


def wait_for_workers(container: Container, number: int) -> None:
    """Wait until `number` workers have started. Workers that have since exited also count."""
    container.wait_for_log("Application startup complete.", times=number)


def count_started_workers(container: Container) -> int:
    return container.log.count("Application startup complete.")


def api(container: Container) -> str:
    """Return the URL of the API, using the container's IP address."""
    return f"http://{container.ip}:8000{PREFIX}"


def get(container: Container, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.get(api(container) + path, headers=headers, timeout=TIMEOUT)


def get_in_background(executor: ThreadPoolExecutor, container: Container, path: str) -> Future[httpx.Response]:
    """Request a slow route in a thread, and wait until the application has received the request.

    Returns:
        A future for the response.
    """
    response = executor.submit(get, container, path)
    container.wait_for_log("slow request")
    return response


def log_in(url: str) -> dict[str, str]:
    """Log in, and return the Authorization header as a dictionary."""
    response = httpx.post(f"{url}/auth/login", json=CREDENTIALS, timeout=TIMEOUT)
    return {"Authorization": f"Bearer {response.json()['access_token']}"}


def make_targets(container: Container, host: str = "", port: int = 8000) -> list[Target]:
    """Register a user. Return two requests for `load`: one without database access, and one that reads the user.

    Args:
        container: The service.
        host: The host to send requests to; by default the container's IP address.
        port: The port to send requests to.
    """
    url = api(container)
    httpx.post(f"{url}/users/", json=PERSON, timeout=TIMEOUT)
    address = (host or container.ip, port)
    return [Target(*address, f"{PREFIX}/health/live"), Target(*address, f"{PREFIX}/users/me", log_in(url))]
