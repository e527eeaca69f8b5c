"""A copy of the repository takes another name, and nothing of the old one is left."""

import re
from pathlib import Path

import pytest

from tests.copies import CHECKS, contents, copy_repository, run

TRACE = re.compile(rb"fastapi[ _.-]*(application|app\b|db\b)", re.IGNORECASE)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copy_repository(tmp_path / "copy")


def rename(folder: Path, answer: str) -> str:
    return run(folder, "python scripts/rename.py", stdin=f"{answer}\n")


def test_nothing_of_the_old_name_is_left_and_everything_works(copy: Path) -> None:
    before = contents(copy)
    assert TRACE.search(b"".join(before.values()))

    rename(copy, "Acme Billing and Invoicing 2")

    after = contents(copy)
    assert {path: text for path, text in after.items() if TRACE.search(text) or TRACE.search(path.encode())} == {}
    assert before.keys() - after.keys() == {"scripts/rename.py", "tests/test_rename.py"}
    assert after.keys() <= before.keys()
    assert {path for path, text in after.items() if b"scripts/rename" in text or b"test_rename" in text} == set()
    assert b"renamed" not in after["README.md"]
    for path, words in {
        "README.md": b"# Acme Billing and Invoicing 2\n",
        "LICENSE": b"The Acme Billing and Invoicing 2 authors",
        "pyproject.toml": b'name = "acme-billing-and-invoicing-2"',
        "uv.lock": b'name = "acme-billing-and-invoicing-2"',
        "Dockerfile": b'title="acme-billing-and-invoicing-2"',
        "docker-compose.yml": b"POSTGRES_DB: acme_billing_and_invoicing_2\n",
        "docker-compose.production.yml": b"image: ${IMAGE:-acme-billing-and-invoicing-2}\n",
        "app/__init__.py": b'NAME = "acme-billing-and-invoicing-2"',  # of its processes
    }.items():
        assert words in after[path], path
    # Adding a feature to it is as before, and would run all once more.
    shortly = "access or token_of_ours or architecture or openapi or docs or database"
    run(copy, f"{CHECKS} --ignore tests/test_fork.py", tests=shortly)


def test_a_second_run_changes_nothing(copy: Path) -> None:
    """Even where the new name has the old one in it, and the script is brought back."""
    title = "FastAPI Application Server"
    script = (copy / "scripts/rename.py").read_text()
    rename(copy, title)
    once = contents(copy)
    (copy / "scripts").mkdir()
    (copy / "scripts/rename.py").write_text(script)

    rename(copy, title)

    assert contents(copy) == once


@pytest.mark.parametrize("title", ["", "2nd", "Acme's", 'Acme"', "Acme  Billing", "Acme -", "Ä"])
def test_a_name_that_does_not_fit_everywhere_is_refused(copy: Path, title: str) -> None:
    before = contents(copy)

    with pytest.raises(AssertionError, match="A name has letters"):
        rename(copy, title)

    assert contents(copy) == before
