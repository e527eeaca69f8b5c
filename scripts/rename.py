"""Gives your copy of this repository a name of its own, wherever the name stands: `uv run scripts/rename.py`.

When it is done it removes itself, its test, and what is said of it.
"""  # noqa: INP001  a script

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TITLE, NAME, DATABASE = "FastAPI Application", "fastapi-app", "fastapi_db"
# Not the repository's own, or not yours to commit.
SKIPPED = {".git", ".venv", ".uv", "data", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"}


def main() -> None:
    """Asks for the title, from which the other spellings follow."""
    title = input("What is your service called, as in Acme Billing? ").strip()
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*([ -][A-Za-z0-9]+)*", title):
        sys.exit("A name has letters from A to Z, digits, and single spaces or hyphens, and begins with a letter.")
    name = title.lower().replace(" ", "-")
    spellings = {TITLE: title, NAME: name, DATABASE: name.replace("-", "_")}
    # The new spellings too, and the longest first: where one contains another, a second run changes nothing.
    either = re.compile("|".join(sorted({*spellings, *spellings.values()}, key=len, reverse=True)))
    left_out = re.compile(r' --ignore tests/test_rename\.py|, "test_rename\.py"')

    for path in sorted(ROOT.rglob("*")):
        if path.is_file() and not SKIPPED & {*path.relative_to(ROOT).parts}:
            edit(path, lambda text: left_out.sub("", either.sub(lambda match: spellings.get(match[0], match[0]), text)))
    naming = re.compile(
        r"^### Name it\n.*?(?=^##)|\[give it a name\]\(#fork-it\), |were renamed, or (?=had)", re.DOTALL | re.MULTILINE
    )
    edit(ROOT / "README.md", lambda text: naming.sub("", text))
    edit(ROOT / "tests/test_readme.py", lambda text: re.sub(r"^.*scripts/rename\.py.*\n", "", text, flags=re.MULTILINE))
    (ROOT / "tests/test_rename.py").unlink(missing_ok=True)
    Path(__file__).unlink()
    Path(__file__).parent.rmdir()
    sys.stdout.write(f"It is called {title} now, and {name} by machines. `git diff` shows where.\n")
    sys.stdout.write("Yours to say: the contact in app/factory.py, the description in pyproject.toml and Dockerfile, ")
    sys.stdout.write("the holder in LICENSE, who reviews what in .github/CODEOWNERS, and what README.md claims.\n")


def edit(path: Path, change: Callable[[str], str]) -> None:
    """Changes a file, where it is text that the change applies to."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return  # a picture
    if (changed := change(text)) != text:
        path.write_text(changed, encoding="utf-8")


main()
