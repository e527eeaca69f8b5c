"""Run the test suites of the packages that hitless replaces, with hitless in their place.

The suites are downloaded from PyPI as source distributions of the locked versions. They run in their own virtual
environment. `peers/differences.toml` lists the tests that fail, and the reason for each failure.
"""

import contextlib
import hashlib
import os
import re
import shutil
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
from availability import cannot_run, package_index_problem

pytestmark = pytest.mark.peers

PEERS = Path(__file__).parent / "peers"
PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE.parents[1]
DIFFERENCES = tomllib.loads((PEERS / "differences.toml").read_text())
# Parts of FastAPI's tutorial that need large packages, but exercise nothing in a server that the other parts do not.
OMITTED = ["graphql", "opentelemetry", "sql_databases", "wsgi"]


def require_package_index() -> None:
    if problem := package_index_problem():
        cannot_run(f"tests that install packages: {problem}")


def outside_of_the_project() -> dict[str, str]:
    """Return the environment variables, except those that would make uv use this project or its virtual environment."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("VIRTUAL_ENV", "UV_PROJECT"))}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install hitless and the locked packages of the group `peers` in an environment. Return its interpreter."""
    require_package_index()
    folder = tmp_path_factory.mktemp("environment")
    environment = os.environ | {"UV_PROJECT_ENVIRONMENT": str(folder)}
    # Compile to bytecode now. Otherwise, the first gunicorn process of a test suite would start seconds later than the
    # suite expects.
    options = ["--quiet", "--frozen", "--package=hitless", "--no-default-groups", "--group=peers", "--compile-bytecode"]
    subprocess.run(["uv", "sync", *options], cwd=ROOT, env=environment, check=True)
    return folder / "bin/python"


def test_hitless_works_on_the_lowest_versions_of_its_dependencies(tmp_path: Path) -> None:
    require_package_index()
    copy = tmp_path / "hitless"
    shutil.copytree(PACKAGE, copy)
    options = ["--quiet", "--resolution=lowest-direct", "--no-default-groups", "--group=peers", "--all-extras"]
    subprocess.run(["uv", "sync", *options], cwd=copy, env=outside_of_the_project(), check=True)
    python = copy / ".venv/bin/python"
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    dependencies = project["dependencies"] + project["optional-dependencies"]["websockets"]
    lowest = dict(re.findall(r"([\w-]+)>=([\d.]+),<", " ".join(dependencies)))
    script = f"import importlib.metadata as m; print(*map(m.version, {list(lowest)}))"
    versions = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    tests = [
        f"tests/test_{name}.py" for name in ("drain", "idle_connections", "master", "protocol", "websocket", "worker")
    ]

    outcomes = run_suite(python, copy, "anyio", *tests, "-n2", "-oanyio_mode=auto", PYTHONPATH=str(copy / "tests"))

    assert len(lowest) == 5
    for version, bound in zip(versions, lowest.values(), strict=True):
        assert f"{version}.0".startswith(f"{bound}.0")
    assert failures(outcomes, "") == set()
    assert len(outcomes) > 100


def download(name: str, folder: Path) -> Path:
    """Download and unpack the source distribution of a package's locked version. Return the unpacked directory."""
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    (sdist,) = [package["sdist"] for package in packages if package["name"] == name]
    archive = httpx.get(sdist["url"], follow_redirects=True, timeout=60).raise_for_status().content
    assert f"sha256:{hashlib.sha256(archive).hexdigest()}" == sdist["hash"]
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


def run_suite(python: Path, folder: Path, plugin: str, *arguments: str, **variables: str) -> dict[str, str]:
    """Run a test suite with a pytest plugin. Return each test's outcome: `passed`, `skipped`, `failure` or `error`."""
    (folder / "empty.ini").write_text("[pytest]\n")
    # pytest finds the plugin through PYTHONPATH, and the suite finds gunicorn through PATH.
    environment = os.environ | {"PYTHONPATH": str(PEERS), "PATH": f"{python.parent}:{os.environ['PATH']}"} | variables
    options = ["-cempty.ini", f"-p{plugin}", "-pno:cacheprovider", "-q", "--tb=short", "--junitxml=report"]
    with (folder / "log").open("w+") as log:
        suite = subprocess.Popen(
            [python, "-m", "pytest", *options, *arguments],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        suite.wait()
        with contextlib.suppress(ProcessLookupError):  # uvicorn-worker's suite leaves a gunicorn running
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
    tests = ["tests/test_workers.py", "-k=not UvicornH11Worker", "-n4"]  # in parallel, because these tests mostly sleep
    configuration = f"--config={PEERS / 'hooks_conf.py'}"

    outcomes = run_suite(python, suite, "worker_plugin", *tests, GUNICORN_CMD_ARGS=configuration)

    assert failures(outcomes, "") == set()
    assert len(outcomes) == 21


def test_suite_of_uvicorns_http_protocol_fails_only_where_listed(python: Path, tmp_path: Path) -> None:
    suite = download("uvicorn", tmp_path)

    outcomes = run_suite(python, suite, "uvicorn_plugin", "tests/protocols/test_http.py", "-k=httptools")

    assert failures(outcomes, "tests.protocols.test_http.") == set(DIFFERENCES["uvicorn"])
    assert len(outcomes) > 80


def test_fastapis_tutorial_passes_as_on_uvicorn(python: Path, tmp_path: Path, background: ThreadPoolExecutor) -> None:
    runs = {}
    for server in ("hitless", "uvicorn"):
        suite = download("fastapi", tmp_path / server)  # a copy for each run, because tests write to it
        for name in OMITTED:  # pytest would load their conftest.py even with `--ignore`
            shutil.rmtree(suite / f"tests/test_tutorial/test_{name}")
        runs[server] = background.submit(run_suite, python, suite, "wire", "tests/test_tutorial", WIRE_SERVER=server)
    outcomes = {server: run.result() for server, run in runs.items()}

    assert outcomes["hitless"] == outcomes["uvicorn"]
    assert failures(outcomes["hitless"], "tests.test_tutorial.") == set(DIFFERENCES["fastapi"])
    assert len(outcomes["hitless"]) > 1300
