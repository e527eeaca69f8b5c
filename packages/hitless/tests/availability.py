"""Find out if tests can run on this machine. Skip or fail the tests that cannot."""

import os
import shutil
import subprocess
from functools import cache
from typing import NoReturn

import httpx
import pytest

REQUIRE_ALL = "REQUIRE_ALL_TESTS"


def cannot_run(reason: str) -> NoReturn:
    """Skip the test, or fail it if REQUIRE_ALL_TESTS is set."""
    if os.environ.get(REQUIRE_ALL):
        pytest.fail(f"{REQUIRE_ALL} is set, and this cannot run: {reason}", pytrace=False)
    pytest.skip(reason)


@cache
def docker_problem() -> str:
    """Return the reason why Docker cannot be used, or an empty string if it can."""
    if not shutil.which("docker"):
        return "Docker is not installed"
    try:
        result = subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=10)
    except subprocess.TimeoutExpired:
        return "the Docker engine does not answer"
    return "no Docker engine is running" if result.returncode else ""


@cache
def package_index_problem() -> str:
    """Return the reason why packages cannot be installed, or an empty string if they can."""
    try:
        httpx.head("https://pypi.org/simple/uvicorn/", timeout=20).raise_for_status()
    except httpx.HTTPError as error:
        return f"PyPI cannot be reached: {error}"
    return ""
