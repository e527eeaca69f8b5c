"""The PostgreSQL and Redis servers of a test run, shared by all of its processes.

TEST_DATABASE_URL and TEST_REDIS_URL pass the servers' URLs to all processes. To use other servers, set them yourself.
"""

import os
import subprocess
from uuid import uuid4

from availability import cannot_run, docker_problem
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

PROBLEM = "TEST_SERVERS_PROBLEM"
_containers: list[str] = []


def start() -> None:
    """Start a container for each server whose URL is not set. Fixtures wait until the servers accept connections."""
    if "TEST_DATABASE_URL" not in os.environ:
        password = uuid4().hex
        options = ["--tmpfs", "/var/lib/postgresql", "--env", f"POSTGRES_PASSWORD={password}"]
        command = ["postgres", "-c", "fsync=off", "-c", "max_connections=300"]
        if address := _run("postgres:18-alpine", 5432, options, command):
            os.environ["TEST_DATABASE_URL"] = f"postgresql://postgres:{password}@{address}/postgres"
    if "TEST_REDIS_URL" not in os.environ and (address := _run("redis:8-alpine", 6379, [], [])):
        os.environ["TEST_REDIS_URL"] = f"redis://{address}"


def stop() -> None:
    """Remove the containers that this test run has started."""
    if _containers:
        subprocess.run(["docker", "rm", "--force", "--volumes", *_containers], capture_output=True, check=False)


def _run(image: str, port: int, options: list[str], command: list[str]) -> str:
    """Run a container, and return its published address, or an empty string if the container cannot be started."""
    if problem := docker_problem():
        os.environ[PROBLEM] = problem
        return ""
    name = f"test-{uuid4().hex}"
    _containers.append(name)
    run = ["docker", "run", "--detach", "--name", name, "--publish", f"127.0.0.1::{port}", *options, image, *command]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    if result.returncode:
        os.environ[PROBLEM] = f"Docker cannot run {image}"
        return ""
    ports = subprocess.run(["docker", "port", name, f"{port}/tcp"], capture_output=True, text=True, check=True)
    return ports.stdout.splitlines()[0]


def postgresql_url() -> str:
    """Return the URL of the PostgreSQL server, or skip the test."""
    url = os.environ.get("TEST_DATABASE_URL")
    if not url:
        cannot_run(f"on PostgreSQL: {os.environ[PROBLEM]}, and TEST_DATABASE_URL is not set")
    return url


def redis_url() -> str:
    """Wait until the Redis server answers, and return its URL. Skip the test if there is no server."""
    url = os.environ.get("TEST_REDIS_URL")
    if not url:
        cannot_run(f"on Redis: {os.environ[PROBLEM]}, and TEST_REDIS_URL is not set")
    with Redis.from_url(url, retry=Retry(ConstantBackoff(0.1), 300)) as redis:
        redis.ping()
    return url
