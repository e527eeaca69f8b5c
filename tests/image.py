"""The container image under test. It is built once per test run, when the first test needs it.

The variable TEST_IMAGE passes the name of the image to all test processes. To test an existing image, or to keep the
image after the tests, set TEST_IMAGE to a name of your choice.
"""

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from availability import cannot_run, docker_problem

from app import NAME

if sys.platform != "win32":
    import fcntl

VARIABLE = "TEST_IMAGE"
DOCKERFILE = Path(__file__).parent.parent / "Dockerfile"
_named_here = False


def start() -> None:
    """Choose an image name that no other test run uses, unless TEST_IMAGE is set."""
    global _named_here  # noqa: PLW0603  there is one per test run
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = f"{NAME}-test:{uuid4().hex}"
        _named_here = True


def stop() -> None:
    """Remove the image if `start` chose its name."""
    if _named_here and not docker_problem():
        subprocess.run(["docker", "rmi", "--force", os.environ[VARIABLE]], capture_output=True, check=False)


def build() -> str:
    """Build the image unless it already exists, and return its name.

    Skip the test if Docker cannot download the base image.
    """
    name = os.environ[VARIABLE]
    with DOCKERFILE.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=False).returncode:
            command = ["docker", "build", "--quiet", "--tag", name, str(DOCKERFILE.parent)]
            result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
            if "failed to resolve source metadata" in result.stderr:
                cannot_run("container tests: Docker cannot download the base image")
            if result.returncode:
                pytest.fail(result.stderr, pytrace=False)
    return name
