"""The test suites of the packages that hitless replaces, run with hitless in their place.

They are downloaded from PyPI as source distributions of the locked versions, and run in an environment of their own.
`peers/differences.toml` lists the tests that fail, with the reason for each.
"""

import contextlib
import hashlib
import os
import signal
import subprocess
import tarfile
import tomllib
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.peers

PEERS = Path(__file__).parent / "peers"
ROOT = Path(__file__).parents[3]
DIFFERENCES = tomllib.loads((PEERS / "differences.toml").read_text())


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python in an environment with the locked versions of the group `peers`."""
    folder = tmp_path_factory.mktemp("environment")
    environment = os.environ | {"UV_PROJECT_ENVIRONMENT": str(folder)}
    # Compiled now, because the first gunicorn of a suite would take seconds more than the suite waits for it.
    command = ["uv", "sync", "--quiet", "--frozen", "--compile-bytecode", "--only-group=peers"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return folder / "bin/python"


def download(name: str, folder: Path) -> Path:
    """Download and unpack the locked source distribution of a package, and return its directory."""
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    (sdist,) = [package["sdist"] for package in packages if package["name"] == name]
    archive = httpx.get(sdist["url"], follow_redirects=True, timeout=60).raise_for_status().content
    assert f"sha256:{hashlib.sha256(archive).hexdigest()}" == sdist["hash"]
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


def run_suite(python: Path, folder: Path, plugin: str, *arguments: str, **variables: str) -> dict[str, str]:
    """Run tests with a plugin, and return the outcome of each: `passed`, `skipped`, `failure` or `error`."""
    (folder / "empty.ini").write_text("[pytest]\n")
    # The plugin is found by PYTHONPATH, and gunicorn by PATH.
    environment = os.environ | {"PYTHONPATH": str(PEERS), "PATH": f"{python.parent}:{os.environ['PATH']}"} | variables
    command = [
        str(python),
        "-m",
        "pytest",
        "-c",
        "empty.ini",
        "-p",
        plugin,
        "-p",
        "no:cacheprovider",
        "-q",
        "--tb=short",
    ]
    with (folder / "log").open("w+") as log:
        suite = subprocess.Popen(
            [*command, "--junitxml=report", *arguments],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        suite.wait()
        with contextlib.suppress(ProcessLookupError):  # uvicorn-worker's suite leaves the master that SIGUSR2 starts
            os.killpg(suite.pid, signal.SIGKILL)
        log.seek(0)
        print(log.read())  # noqa: T201  pytest shows it if the test fails
    outcomes = {}
    for case in ET.parse(folder / "report").iter("testcase"):  # noqa: S314  our own report
        problems = {element.tag for element in case} & {"failure", "error", "skipped"}
        outcomes[f"{case.attrib['classname']}.{case.attrib['name']}"] = problems.pop() if problems else "passed"
    return outcomes


def failures(outcomes: dict[str, str], prefix: str) -> set[str]:
    return {name.removeprefix(prefix) for name, outcome in outcomes.items() if outcome in {"failure", "error"}}


def test_suite_of_uvicorn_worker_passes(python: Path, tmp_path: Path) -> None:
    suite = download("uvicorn-worker", tmp_path)
    configuration = f"--config={PEERS / 'hooks_conf.py'}"

    outcomes = run_suite(
        python,
        suite,
        "worker_plugin",
        "tests/test_workers.py",
        "-k=not UvicornH11Worker",
        "-n4",  # they mostly sleep
        GUNICORN_CMD_ARGS=configuration,
    )

    assert failures(outcomes, "") == set()
    assert len(outcomes) == 21


def test_suite_of_uvicorns_http_protocol_fails_only_where_listed(python: Path, tmp_path: Path) -> None:
    suite = download("uvicorn", tmp_path)

    outcomes = run_suite(python, suite, "uvicorn_plugin", "tests/protocols/test_http.py", "-k=httptools")

    assert failures(outcomes, "tests.protocols.test_http.") == set(DIFFERENCES["uvicorn"])
    assert len(outcomes) > 80


def test_fastapis_tutorial_passes_as_on_uvicorn(python: Path, tmp_path: Path, background: ThreadPoolExecutor) -> None:
    arguments = ["tests/test_tutorial", "--ignore=tests/test_tutorial/test_websockets"]

    runs = {  # at the same time, each in a directory of its own, because some tests write to it
        server: background.submit(
            run_suite, python, download("fastapi", tmp_path / server), "wire", *arguments, WIRE_SERVER=server
        )
        for server in ("hitless", "uvicorn")
    }
    outcomes = {server: run.result() for server, run in runs.items()}

    assert outcomes["hitless"] == outcomes["uvicorn"]
    assert failures(outcomes["hitless"], "tests.test_tutorial.") == set(DIFFERENCES["fastapi"])
    assert len(outcomes["hitless"]) > 1300
