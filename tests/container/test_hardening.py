"""What happens under the strictest options of `docker run`, and what is in the image: only what runs."""

import contextlib
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
from processes import PATIENCE

from app import NAME
from tests.conftest import ROOT
from tests.container.engine import cli, json_lines, running
from tests.container.service import options

STRICT = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp"]
WAYS = {
    "strictest": STRICT,
    "as a user that the image does not know": ["--user=12345:0"],
    "strictest, as a user that the image does not know": [*STRICT, "--user=12345:0"],
    "behind an init": ["--init"],
    "strictest, with no /tmp": STRICT[:-1],
    "strictest, behind an init": [*STRICT, "--init"],
}
OURS = ("app", "opt/venv")
# Names that have no place in the image, as patterns for whole parts of a path.
UNWANTED = [".git", ".env*", "uv", "uvx", "pip", ".cache", "gcc*", "cc", "make", "curl", "wget", "*.db", "*.key"]

Files = dict[str, tarfile.TarInfo]


@contextlib.contextmanager
def export(image: str) -> Iterator[tarfile.TarFile]:
    """Every file of an image, as a container begins with it."""
    with running(image, "--entrypoint=true") as container, TemporaryFile() as archive:
        subprocess.run(["docker", "export", container.name], stdout=archive, check=True)
        archive.seek(0)
        with tarfile.open(fileobj=archive) as tar:
            yield tar


def files_of(image: str) -> Files:
    with export(image) as tar:
        return {file.name: file for file in tar}


def all_but_times(image: str) -> dict[str, tuple[object, ...]]:
    """What is to be said of each file, except when it was made."""
    with export(image) as tar:
        return {
            file.name: (
                *(file.type, file.mode, file.uid, file.gid, file.linkname),
                sha256(content.read()).digest() if (content := file.isreg() and tar.extractfile(file)) else None,
            )
            for file in tar
        }


def is_ours(name: str) -> bool:
    """Whether it is not from the base image."""
    return name.startswith(tuple(f"{folder}/" for folder in OURS))


@pytest.fixture(scope="module")
def files(image: str) -> Files:
    return files_of(image)


@pytest.fixture(scope="module")
def base_files() -> Files:
    (base,) = re.findall("^ARG PYTHON_IMAGE=(.*)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return files_of(base)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What the builder is given, in a folder that a test may change."""
    for name in ("pyproject.toml", "uv.lock", "gunicorn.conf.py", "Dockerfile", ".dockerignore"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "app", tmp_path / "app")
    return tmp_path


@pytest.mark.parametrize("way", WAYS)
def test_it_is_healthy_and_has_nothing_to_complain_about(image: str, way: str) -> None:
    with running(image, *WAYS[way], *options(), "--publish=127.0.0.1::8000") as container:
        container.is_healthy()

        answer = httpx.get(f"{container.url}/health/ready", timeout=PATIENCE)
        assert answer.status_code == 200
        assert {line["level"] for line in json_lines(container.log)} == {"info"}
        container.stop()
        assert container.inspect("{{.State.ExitCode}}") == "0"
        assert {line["level"] for line in json_lines(container.log)} == {"info"}


def test_the_image_has_only_what_runs(files: Files, base_files: Files) -> None:
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


def test_nobody_but_root_may_write_the_program(files: Files) -> None:
    program = [file for name, file in files.items() if is_ours(name) or name in OURS]

    assert len(program) > 1000
    assert [file.name for file in program if (file.uid, file.gid) != (0, 0)] == []
    assert [file.name for file in program if file.mode & 0o022 and not file.issym()] == []


def test_no_file_gives_its_caller_rights_that_the_base_image_did_not_give(files: Files, base_files: Files) -> None:
    def set_id(found: Files) -> set[str]:
        return {name for name, file in found.items() if file.isfile() and file.mode & 0o6000}

    assert set_id(files) <= set_id(base_files)


@pytest.fixture
def build(copy: Path) -> Iterator[Callable[..., tuple[str, str]]]:
    """Builds the copy; gives the image and what the builder said."""
    tags = []

    def build(*options: str) -> tuple[str, str]:
        tags.append(f"{NAME}-test:{uuid4().hex}")
        command = ["docker", "build", "--progress=plain", "--tag", tags[-1], *options, str(copy)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        return tags[-1], result.stderr

    yield build
    for tag in tags:
        cli("rmi", tag)


def test_built_twice_it_has_the_same_files(image: str, build: Callable[..., tuple[str, str]]) -> None:
    again, _ = build("--no-cache")

    first, second = all_but_times(image), all_but_times(again)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    # Here the day of the build would be, which was the same.
    user = cli("run", "--rm", "--user=0", image, "grep", "^appuser:", "/etc/shadow")
    assert user.split(":")[2] == ""


def test_a_change_of_the_code_does_not_install_the_dependencies_again(
    image: str,  # noqa: ARG001  warms the cache
    copy: Path,
    build: Callable[..., tuple[str, str]],
) -> None:
    with (copy / "app" / "main.py").open("a") as main:
        main.write(f"# {uuid4().hex}\n")  # never seen before, whatever earlier runs left in the engine's cache

    _, said = build()

    (step,) = re.findall(r"^(#\d+) \[builder .*uv sync", said, re.MULTILINE)
    assert f"{step} CACHED" in said
    (step,) = re.findall(r"^(#\d+) \[builder .*COPY app", said, re.MULTILINE)
    assert f"{step} CACHED" not in said


def test_no_layer_holds_a_secret_that_lies_beside_the_code(
    copy: Path, build: Callable[..., tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = uuid4().hex
    for place in (".env", ".env.production", "app/.env", "secret.key", "data/app.db", ".git/config"):
        (copy / place).parent.mkdir(exist_ok=True)
        (copy / place).write_text(secret)

    image, _ = build()

    archive = tmp_path_factory.mktemp("image") / "image.tar"
    cli("save", "--output", archive, image)
    with tarfile.open(archive) as layers:
        assert [name for layer in layers for name in holders(layers, layer, secret.encode())] == []
    assert "SECRET_KEY" not in cli("inspect", image)


def holders(archive: tarfile.TarFile, layer: tarfile.TarInfo, secret: bytes) -> Iterator[str]:
    """The files of a layer that hold a secret."""
    content = archive.extractfile(layer)
    if content is None:
        return
    if secret in content.read():  # its configuration, or a layer that is stored as it is
        yield layer.name
    content.seek(0)
    with contextlib.suppress(tarfile.ReadError), tarfile.open(fileobj=content) as files:  # not everything is a layer
        for file in files:
            inner = files.extractfile(file) if file.isreg() else None
            if inner and secret in inner.read():
                yield file.name
