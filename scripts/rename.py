"""Rename a copy of this repository: `uv run scripts/rename.py`.

The script replaces the name in every file, and then removes itself, its test, and the documentation about it. The
packages in packages/ keep their names and their licences.
"""  # noqa: INP001  a script

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TITLE, NAME, DATABASE = "FastAPI Application", "fastapi-app", "fastapi_db"
# Files and directories that are not under version control, or that must keep the old name.
SKIPPED = {
    *(".git", ".venv", ".uv", "data", "node_modules", "packages"),
    *("__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"),
}
# The clause to remove from docs/testing.md. It is about this script's test.
CLAUSE = "the project can be renamed, "
# A pattern for the section to remove from README.md. It is about this script.
SECTION = r"^### (?:(?!^##).)*?uv run scripts/rename\.py.*?(?=^##)"


def main() -> None:
    """Ask for the new title, derive the other spellings of the name from it, and rename the project."""
    try:
        title = input("What is the name of your service, such as Acme Billing? ").strip()
    except (EOFError, KeyboardInterrupt):
        sys.exit("\nNo name was entered. Nothing is changed.")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*([ -][A-Za-z0-9]+)*", title):
        sys.exit(
            "A name consists of letters from A to Z, digits, and single spaces or hyphens, and begins with a letter."
        )
    name = title.lower().replace(" ", "-")
    if is_dependency(name):
        sys.exit(f"{name} is a package that this service depends on.")
    spellings = {TITLE: title, NAME: name, DATABASE: name.replace("-", "_")}
    # Also match the new spellings, and match the longest ones first. Otherwise, if the new name contains the old one, a
    # second run would replace part of it.
    pattern = re.compile("|".join(sorted({*spellings, *spellings.values()}, key=len, reverse=True)))

    def replace_names(text: str) -> str:
        return pattern.sub(lambda match: spellings.get(match[0], match[0]), text)

    for path in sorted(ROOT.rglob("*")):
        if path.is_file() and not SKIPPED & {*path.relative_to(ROOT).parts}:
            edit(path, replace_names)
    edit(ROOT / "README.md", lambda text: re.sub(SECTION, "", text, flags=re.DOTALL | re.MULTILINE))
    edit(ROOT / "docs/testing.md", lambda text: text.replace(CLAUSE, ""))
    (ROOT / "tests/copies/test_rename.py").unlink(missing_ok=True)
    Path(__file__).unlink()
    Path(__file__).parent.rmdir()
    sys.stdout.write(
        f"The service is now named {title}, and {name} in identifiers. `git diff` shows the changes.\n"
        "Edit the rest yourself: the contact in app/main.py, the description in pyproject.toml and Dockerfile,\n"
        "the copyright holder in LICENSE, the reviewers in .github/CODEOWNERS, and what README.md claims.\n"
    )


def is_dependency(name: str) -> bool:
    """Return whether the lock file contains a package with this name, other than the project itself."""
    line = f'name = "{name}"\n'
    return line in (ROOT / "uv.lock").read_text() and line not in (ROOT / "pyproject.toml").read_text()


def edit(path: Path, change: Callable[[str], str]) -> None:
    """Change a file if it is text."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:  # an image
        return
    if (changed := change(text)) != text:
        path.write_text(changed, encoding="utf-8")


main()
