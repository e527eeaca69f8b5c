"""The feature of the tutorial (docs/add-a-feature.md) is added to a copy of the repository, and removed from it."""

import re
import shutil
from pathlib import Path

import pytest

from tests.copies.repository import CHECKS, contents, copy_repository, run
from tests.pages import command, tutorial


def apply(diff: str, file: Path, *, backwards: bool = False) -> None:
    """Apply a diff whose hunks are separated by `@@`, or revert it if `backwards` is true."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] in kinds) for kinds in (" -", " +"))
        old, new = (after, before) if backwards else (before, after)
        text = file.read_text()
        assert text.count(old) == 1, old
        file.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def with_notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the feature from the tutorial added."""
    copy = copy_repository(tmp_path_factory.mktemp("fork") / "with-notes")
    for block in tutorial():
        if block.language == "python":
            (copy / block.title).parent.mkdir(exist_ok=True)
            (copy / block.title).write_text(block.text)
        elif block.language == "diff":
            apply(block.text, copy / block.title)
    run(copy, command("add-migration"))
    return copy


@pytest.fixture
def without_routes(with_notes: Path, tmp_path: Path) -> Path:
    """A copy of the repository with the files that the tutorial adds, but without its changes to existing files."""
    copy = tmp_path / "without-notes"
    shutil.copytree(with_notes, copy)
    for block in tutorial():
        if block.language == "diff":
            apply(block.text, copy / block.title, backwards=True)
    return copy


def test_feature_is_added(with_notes: Path) -> None:
    tests = "notes or access or architecture or openapi or documentation or migrations"
    run(with_notes, f"{CHECKS} -k '{tests}'")

    assert re.search(r"\d+ passed", run(with_notes, "pytest tests/notes"))


def test_feature_passes_generated_requests(with_notes: Path) -> None:
    output = run(with_notes, "pytest tests/server/test_schemathesis.py -k 'sqlite-user'")

    assert "1 passed" in output


def test_table_stays_for_a_release_without_the_feature(without_routes: Path) -> None:
    (model,) = [block.text for block in tutorial() if block.title.endswith("models.py")]
    users = without_routes / "app/users/models.py"
    with users.open("a") as file:
        file.write("\n\n" + model[model.index("class Note") :])
    commands = command("remove-feature").splitlines()

    run(without_routes, "\n".join(line for line in commands if "alembic" not in line))

    run(
        without_routes,
        f"{CHECKS} -k 'access or architecture or openapi or migrations'",
    )


def test_feature_is_removed(without_routes: Path, tmp_path: Path) -> None:
    copy = without_routes

    run(copy, command("remove-feature"))

    left, before = contents(copy), contents(copy_repository(tmp_path / "before"))
    migrations = sorted(Path(path).name.partition("_")[2] for path in left.keys() - before.keys())
    assert migrations == ["add_notes.py", "drop_notes.py"]
    assert {path for path in before if left.get(path) != before[path]} == set()
    # The copy is nearly identical to this repository, so a few tests suffice.
    run(copy, f"{CHECKS} -k 'access or architecture or openapi or migrations'")
