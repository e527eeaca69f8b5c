"""The benchmarks run, and compare the service with a baseline application that returns the same responses."""

import subprocess
import sys

import httpx
import pytest
from processes import TIMEOUT

from benchmarks import compare_commits, servers
from benchmarks.__main__ import add_users, get_token
from benchmarks.hashes import hashes_per_second
from benchmarks.login_timing import mann_whitney
from tests.conftest import ROOT
from tests.pages import command


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_limit_returns_the_same_responses_as_the_service(database_url: str) -> None:
    add_users(database_url, 1, 200)

    with servers.limit(database_url) as limit, servers.service(database_url) as service:
        auth = {"Authorization": f"Bearer {get_token(service)}"}
        responses = [
            [httpx.get(server.url + path, headers=auth, timeout=TIMEOUT).json() for server in (limit, service)]
            for path in ("/health/live", "/users/me", "/users/?limit=100")
        ]

    assert [of_limit for of_limit, _ in responses] == [of_service for _, of_service in responses]
    assert len(responses[-1][0]["items"]) == 100


@pytest.mark.parametrize(
    "module", [command("benchmark").split()[-1], "benchmarks.container", "benchmarks.compare_servers"]
)
def test_documented_command_starts(module: str, clean_environment: dict[str, str]) -> None:
    """Test only that the command starts, because a full run takes minutes and uses the whole machine."""
    subprocess.run([sys.executable, "-m", module, "--help"], env=clean_environment, cwd=ROOT, check=True, timeout=600)


def test_missing_image_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["container.py", "missing"])

    with pytest.raises(SystemExit, match=r"^This needs Docker and the image: docker build -t missing \.$"):
        servers.parse_image("benchmarks.container", None)


def test_hashes_per_second_are_counted() -> None:
    assert hashes_per_second(1) > 0


def test_login_timing_compares_failed_logins_and_requests_for_a_reset(clean_environment: dict[str, str]) -> None:
    """This tests only that the program runs, because two samples of each kind are too few to compare times."""
    command = [sys.executable, "-m", "benchmarks.login_timing", "--samples=2"]

    lines = subprocess.check_output(command, env=clean_environment, cwd=ROOT, text=True, timeout=600).splitlines()

    assert sum("median" in line for line in lines) == 6
    assert sum("p = " in line for line in lines) == 6
    assert lines[-1] == "They cannot be told apart."


def test_mann_whitney_distinguishes_only_different_samples() -> None:
    even, odd, later = [[start + 2.0 * number for number in range(50)] for start in (0, 1, 60)]

    assert mann_whitney(even, odd) > 0.5
    assert mann_whitney(even, later) < 0.001


def test_commits_are_compared_by_their_instructions() -> None:
    *_, row = compare_commits.table({"`GET /`": (1_000_000.0, 1_100_000.4)}).splitlines()

    assert row == "| `GET /` | 1,000,000 | 1,100,000 | 1.100 |"
