"""After scripts/rename.py has run in a copy of the repository, the old name is gone and all checks pass."""

import re
from pathlib import Path

import pytest

from tests.copies.repository import CHECKS, contents, copy_repository, run
from tests.pages import command

OLD_NAME = re.compile(rb"fastapi[ _.-]*(application|app\b|db\b)", re.IGNORECASE)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copy_repository(tmp_path / "copy")


def rename(folder: Path, answer: str) -> str:
    return run(folder, command("rename"), stdin=f"{answer}\n")


def test_rename_replaces_the_name_everywhere_and_all_checks_pass(copy: Path) -> None:
    before = contents(copy)
    assert OLD_NAME.search(b"".join(before.values()))

    rename(copy, "Acme Billing and Invoicing 2")

    after = contents(copy)
    assert [path for path, text in after.items() if OLD_NAME.search(text) or OLD_NAME.search(path.encode())] == []
    assert before.keys() - after.keys() == {"scripts/rename.py", "tests/copies/test_rename.py"}
    assert after.keys() <= before.keys()
    assert [path for path, text in after.items() if b"scripts/rename" in text or b"test_rename" in text] == []
    assert b"the project can be renamed" in before["docs/testing.md"]
    assert b"the project can be renamed" not in after["docs/testing.md"]
    for path, text in {
        "README.md": b"# Acme Billing and Invoicing 2\n",
        "LICENSE": b"The Acme Billing and Invoicing 2 authors",
        "pyproject.toml": b'name = "acme-billing-and-invoicing-2"',
        "uv.lock": b'name = "acme-billing-and-invoicing-2"',
        "Dockerfile": b'title="acme-billing-and-invoicing-2"',
        "docker-compose.yml": b"POSTGRES_DB: acme_billing_and_invoicing_2\n",
        "docker-compose.production.yml": b"image: ${IMAGE:-acme-billing-and-invoicing-2}\n",
        "app/__init__.py": b'NAME = "acme-billing-and-invoicing-2"',
    }.items():
        assert text in after[path], path
    # The script does not change packages/, because the packages keep their names and licences.
    assert {path for path in before if path.startswith("packages/") and after[path] != before[path]} == set()
    tests = "access or architecture or openapi or documentation or database or gunicorn_conf"
    run(copy, f"{CHECKS} && pytest tests/server/test_gunicorn_conf.py", tests=tests)


@pytest.mark.parametrize("title", ["Sun", "The Billing and Invoicing Service of the Acme Corporation"])
def test_code_is_formatted_after_a_short_or_long_name(copy: Path, title: str) -> None:
    rename(copy, title)

    run(copy, "ruff check . && ruff format --check .")


def rewrite(page: str) -> str:
    """Replace the sentences on a page with dummy text. Keep the code and the headings.

    Tables are replaced too, except those with a `<!-- table=… -->` comment, which tests read.
    """
    lines: list[str] = []
    is_kept = False
    for line in page.splitlines():
        if line.startswith("```"):
            is_kept = not is_kept
        elif line.startswith("<!-- table="):
            is_kept = True
        elif is_kept and not line and lines[-1].startswith("|"):
            is_kept = False
        is_text = not (is_kept or not line or line.startswith(("#", "```")))
        lines.append(("| Other | words |" if line.startswith("|") else "Other words.") if is_text else line)
    return "\n".join(lines) + "\n"


def test_pages_can_be_rewritten(copy: Path) -> None:
    rename(copy, "Acme Billing")
    for page in (copy / "README.md", copy / "SECURITY.md", copy / "AGENTS.md", *copy.glob("docs/*.md")):
        page.write_text(rewrite(page.read_text()))
    readme = (copy / "README.md").read_text()

    output = run(copy, "pytest tests/test_documentation.py tests/test_repository.py tests/server/test_explained.py")

    assert "Other words." in readme
    assert "uv run pytest" in readme
    assert " passed" in output


def test_second_rename_changes_nothing(copy: Path) -> None:
    """The new name contains the old one, which must not be replaced again.

    The script deletes itself after the first run, so the test restores it.
    """
    title = "FastAPI Application Server"
    script = (copy / "scripts/rename.py").read_text()
    rename(copy, title)
    once = contents(copy)
    (copy / "scripts").mkdir()
    (copy / "scripts/rename.py").write_text(script)

    rename(copy, title)

    assert contents(copy) == once


def test_no_answer_is_reported_in_one_line(copy: Path) -> None:
    with pytest.raises(AssertionError, match=r"\? \nNo name was entered\. Nothing is changed\.\n$"):
        run(copy, command("rename"))


@pytest.mark.parametrize("title", ["", "2nd", "Acme's", 'Acme"', "Acme  Billing", "Acme -", "Ä"])
def test_name_with_unsupported_characters_changes_nothing(copy: Path, title: str) -> None:
    before = contents(copy)

    with pytest.raises(AssertionError, match="A name consists of letters"):
        rename(copy, title)

    assert contents(copy) == before


@pytest.mark.parametrize("title", ["Hitless", "ExactJSON", "Pydantic Settings"])
def test_name_of_a_dependency_changes_nothing(copy: Path, title: str) -> None:
    before = contents(copy)

    with pytest.raises(AssertionError, match="is a package that this service depends on"):
        rename(copy, title)

    assert contents(copy) == before
