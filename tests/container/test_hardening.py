"""The image runs with the strictest `docker run` options, and contains neither unnecessary nor writable files."""

import contextlib
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from uuid import uuid4

import httpx
import pytest
from processes import TIMEOUT

from app import NAME
from tests.conftest import ROOT
from tests.container.engine import run_container, run_docker
from tests.container.service import options

STRICT = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp"]
DOCKER_OPTIONS = {
    "strict": STRICT,
    "unknown user": ["--user=12345:0"],
    "strict, unknown user": [*STRICT, "--user=12345:0"],
    "init": ["--init"],
    "strict, without /tmp": STRICT[:-1],
    "strict, init": [*STRICT, "--init"],
}
PROGRAM = ("app", "opt/venv")
# Patterns of file and directory names that must not be in the image.
UNWANTED = [".git", ".env*", "uv", "uvx", "pip", ".cache", "gcc*", "cc", "make", "curl", "wget", "*.db", "*.key"]

Files = dict[str, tarfile.TarInfo]
Build = Callable[..., tuple[str, str]]


@contextlib.contextmanager
def export(image: str) -> Iterator[tarfile.TarFile]:
    """Open a tar archive of all files in the image."""
    with run_container(image, "--entrypoint=true") as container, TemporaryFile() as archive:
        subprocess.run(["docker", "export", container.name], stdout=archive, check=True)
        archive.seek(0)
        with tarfile.open(fileobj=archive) as tar:
            yield tar


def list_files(image: str) -> Files:
    with export(image) as tar:
        return {file.name: file for file in tar}


def describe_files(image: str) -> dict[str, tuple[object, ...]]:
    """Map each file name to the file's metadata (without times) and a hash of its content."""
    with export(image) as tar:
        return {
            file.name: (
                *(file.type, file.mode, file.uid, file.gid, file.linkname),
                sha256(content.read()).digest() if (content := file.isreg() and tar.extractfile(file)) else None,
            )
            for file in tar
        }


def is_program(name: str) -> bool:
    """Return whether a file belongs to the service rather than to the base image."""
    return name.startswith(tuple(f"{folder}/" for folder in PROGRAM))


@pytest.fixture(scope="module")
def files(image: str) -> Files:
    return list_files(image)


@pytest.fixture(scope="module")
def base_files() -> Files:
    (base,) = re.findall("^ARG PYTHON_IMAGE=(.*)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return list_files(base)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the build context that tests may modify."""
    for name in ("pyproject.toml", "uv.lock", "gunicorn.conf.py", "Dockerfile", ".dockerignore"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("app", "packages"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


NO_PIDFILE = "/tmp/gunicorn.pid cannot be written: Read-only file system. The server runs without a pidfile."  # noqa: S108
WARNINGS = {"strict, without /tmp": [NO_PIDFILE]}


@pytest.mark.parametrize("case", DOCKER_OPTIONS)
def test_container_is_healthy_and_logs_no_other_warning(image: str, case: str) -> None:
    with run_container(image, *DOCKER_OPTIONS[case], *options(), "--publish=127.0.0.1::8000") as container:
        container.wait_until_healthy()

        response = httpx.get(f"{container.url}/health/ready", timeout=TIMEOUT)
        assert response.status_code == 200
        container.stop()
        assert container.exit_code == 0
        assert container.messages("warning") == WARNINGS.get(case, [])
        assert container.log_levels <= {"info", "warning"}


def test_image_contains_no_unneeded_files(files: Files, base_files: Files) -> None:
    added = files.keys() - base_files.keys()

    assert [
        name for name in added for part in name.split("/") for unwanted in UNWANTED if fnmatch(part, unwanted)
    ] == []
    assert {name.split("/")[1] for name in added if name.startswith("app/")} == {
        "__pycache__",
        "app",
        "gunicorn.conf.py",
        "pyproject.toml",
    }


def test_only_root_can_write_the_program(files: Files) -> None:
    program = [file for name, file in files.items() if is_program(name) or name in PROGRAM]

    assert len(program) > 1000
    assert [file.name for file in program if (file.uid, file.gid) != (0, 0)] == []
    assert [file.name for file in program if file.mode & 0o022 and not file.issym()] == []


def test_image_adds_no_setuid_or_setgid_file(files: Files, base_files: Files) -> None:
    def privileged(found: Files) -> set[str]:
        return {name for name, file in found.items() if file.isfile() and file.mode & 0o6000}

    assert privileged(files) <= privileged(base_files)


@pytest.fixture
def build(copy: Path) -> Iterator[Build]:
    """A function that builds an image from `copy` and returns the image's name and the build output."""
    tags = []

    def build(*options: str) -> tuple[str, str]:
        tags.append(f"{NAME}-test:{uuid4().hex}")
        command = ["docker", "build", "--progress=plain", "--tag", tags[-1], *options, str(copy)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        return tags[-1], result.stderr

    yield build
    for tag in tags:
        run_docker("rmi", tag)


def test_two_builds_contain_the_same_files(copy: Path, build: Build) -> None:
    image, _ = build()
    for path in copy.rglob("*"):
        os.utime(path, (0, 0))  # simulate a checkout with other file times
    other_image, _ = build("--no-cache")

    first, second = describe_files(image), describe_files(other_image)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    # The third field is the date of the last password change. The comparison above would not detect a date, because two
    # builds on the same day have the same one.
    user = run_docker("run", "--rm", "--user=0", image, "grep", "^appuser:", "/etc/shadow")
    assert user.split(":")[2] == ""


def executed_instructions(output: str) -> list[str]:
    """Return the instructions of the builder stage that were executed rather than taken from the cache."""
    steps = re.findall(r"^(#\d+) \[builder +\d+/\d+\] (?!FROM)(.*)", output, re.MULTILINE)
    return [instruction for step, instruction in steps if f"{step} CACHED" not in output]


COMPILE = "RUN python -m compileall"


@pytest.mark.usefixtures("image")  # the image's build fills the cache
@pytest.mark.parametrize(
    ("changed", "executed"),
    [
        ("app/main.py", ["COPY app", COMPILE]),
        (
            "packages/hitless/src/hitless/server.py",
            ["COPY packages ./packages", "RUN uv sync", "COPY gunicorn.conf.py", "COPY app", COMPILE],
        ),
    ],
    ids=["app", "packages"],
)
def test_changed_code_does_not_reinstall_dependencies(
    copy: Path, build: Build, changed: str, executed: list[str]
) -> None:
    with (copy / changed).open("a") as module:
        module.write(f"# {uuid4().hex}\n")  # unique, so that no build with the same change is cached

    _, output = build()

    instructions = executed_instructions(output)
    assert [instruction[: len(start)] for instruction, start in zip(instructions, executed, strict=True)] == executed
    assert "--no-install-workspace" in output  # this instruction installs the dependencies, and was cached


def test_no_layer_contains_a_secret_from_the_working_tree(
    copy: Path, build: Build, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = uuid4().hex
    in_packages = ("packages/.env", "packages/hitless/.env", "packages/hitless/tests/secret.py")
    for place in (".env", ".env.production", "app/.env", *in_packages, "secret.key", "data/app.db", ".git/config"):
        (copy / place).parent.mkdir(exist_ok=True)
        (copy / place).write_text(secret)

    image, _ = build()

    archive = tmp_path_factory.mktemp("image") / "image.tar"
    run_docker("save", "--output", archive, image)
    with tarfile.open(archive) as layers:
        assert [name for layer in layers for name in files_containing(secret.encode(), layers, layer)] == []
    assert "SECRET_KEY" not in run_docker("inspect", image)


def files_containing(secret: bytes, archive: tarfile.TarFile, layer: tarfile.TarInfo) -> Iterator[str]:
    """Yield the names of files in the layer that contain the secret."""
    content = archive.extractfile(layer)
    if content is None:
        return
    if secret in content.read():  # in the image's configuration or an uncompressed layer
        yield layer.name
    content.seek(0)
    with contextlib.suppress(tarfile.ReadError), tarfile.open(fileobj=content) as files:  # not all members are layers
        for file in files:
            inner = files.extractfile(file) if file.isreg() else None
            if inner and secret in inner.read():
                yield file.name
