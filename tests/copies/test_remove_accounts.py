"""The accounts feature is removed from a copy of the repository as docs/accounts.md describes, and all checks pass."""

import ast
import re
from pathlib import Path

import pytest

from tests.copies.repository import CHECKS, copy_repository, run
from tests.pages import command

# Names that belong to the feature: those that the documented command searches for, and others that tests use.
NAMES = re.compile(
    command("find-accounts").split('"')[1]
    + r"|AccountToken|MailTokens|MAIL_TOKENS|TOKEN_IDS|add_mail_tokens|confirmations|by_mail|\binvited\b"
)


def delete_references(file: Path) -> None:
    """Delete all references to the feature.

    For each line that matches NAMES, delete the smallest list element, set element or statement that contains the line.
    If a line in a test function matches, delete the whole function.
    """
    lines = file.read_text().splitlines(keepends=True)
    nodes = list(ast.walk(ast.parse("".join(lines))))
    tests = [
        node for node in nodes if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef) and node.name[:5] == "test_"
    ]
    in_tests = {id(node) for test in tests for node in ast.walk(test)} - {id(test) for test in tests}
    parts: list[tuple[int, int]] = []
    for node in nodes:
        elements = node.elts if isinstance(node, ast.List | ast.Set) else []
        parts += [(element.lineno, element.end_lineno or 0) for element in elements]
        if isinstance(node, ast.stmt) and id(node) not in in_tests:
            first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
            parts.append((first, node.end_lineno or 0))
    parts.sort(key=lambda part: part[1] - part[0])
    for number, line in enumerate(lines, 1):
        if NAMES.search(line):
            first, last = next(part for part in parts if part[0] <= number <= part[1])
            lines[first - 1 : last] = [""] * (last - first + 1)
    file.write_text("".join(lines))


def delete_text(file: Path, *patterns: str) -> None:
    """Delete the text that matches each pattern. Each pattern must match exactly once."""
    text = file.read_text()
    for pattern in patterns:
        text, count = re.subn(pattern, "", text, flags=re.MULTILINE)
        assert count == 1, (file, pattern, count)
    file.write_text(text)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copy_repository(tmp_path / "copy")


def test_accounts_are_removed(copy: Path) -> None:
    run(copy, command("delete-accounts"))
    delete_text(
        copy / "app/api.py",
        r"^from app.accounts.mails .*\n",
        r"^from app.accounts.router .*\n",
        r"^from app.settings .*\n",
        r'^    \{\n        "name": "accounts",\n(?:.*\n)*?    \},\n',
        r"^    settings: .*\n",
        r"^    if settings.mail:\n(?:        .*\n)*",
    )
    for name in ("README.md", "SECURITY.md"):
        text = (copy / name).read_text()
        (copy / name).write_text(re.sub(r"^\|.*\]\(tests/accounts/.*\n", "", text, flags=re.MULTILINE))
    delete_text(copy / "docs/architecture.md", r", \[`accounts/`\]\(../app/accounts\)", r" account emails: .*?;")
    delete_text(copy / "docs/recipes.md", r"\[pages.py\]\(../app/accounts/pages.py\) ")
    sections = "Walkthrough with curl|Where the links lead|Change the texts|Remove the feature"
    page = copy / "docs/accounts.md"
    page.write_text(re.sub(rf"^## (?:{sections})\n(?:(?!## ).*\n?)*", "", page.read_text(), flags=re.MULTILINE))
    delete_text(copy / "tests/server/schemathesis.toml", r"\n# Its other methods (?:.*\n)*?phases.*\n")
    for file in (copy / "tests").rglob("*.py"):
        delete_references(file)

    run(copy, command("after-deleting-accounts"))

    run(copy, f"{CHECKS} -k 'access or architecture or openapi or documentation or hostile or mail'")
