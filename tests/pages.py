"""Read code blocks and tables from the documentation by name, so that tests do not depend on the text around them.

Names are written where the rendered page does not show them:

    ```sh name=backup                   commands; read with `command`
    ```python title=app/notes/x.py      a new file in the tutorial; read with `tutorial`
    ```diff title=app/api.py            a change to a file in the tutorial; read with `tutorial`
    <!-- table=settings -->             on the line before a table; read with `table`
"""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "AGENTS.md", ROOT / ".github/CONTRIBUTING.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))

_BLOCK = re.compile(r"^```(\w+)(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
_TABLE = re.compile(r"^<!-- table=([\w-]+) -->\n+\|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", re.MULTILINE)


class Block(NamedTuple):
    """A code block on a documentation page. Its name and title may be empty."""

    page: Path
    language: str
    name: str
    title: str
    text: str


@cache
def blocks() -> list[Block]:
    """Return the code blocks of all pages."""
    found = []
    for page in PAGES:
        for language, info, text in _BLOCK.findall(page.read_text()):
            options = dict(option.split("=", 1) for option in info.split())
            found.append(Block(page, language, options.get("name", ""), options.get("title", ""), text))
    return found


def command(name: str) -> str:
    """Return the commands in the code block named `name`. Blocks with the same name must have the same content."""
    found = {block.text for block in blocks() if block.name == name}
    assert found, f"no block is named {name}. If the documentation needs none, delete this test"
    assert len(found) == 1, f"blocks with different commands are named {name}"
    return found.pop()


def tutorial() -> list[Block]:
    """Return the tutorial's code blocks (new files, changes to files, and commands) in order of appearance."""
    return [block for block in blocks() if block.page.name == "add-a-feature.md"]


@cache
def tables() -> dict[str, list[list[str]]]:
    """Return the rows of all named tables, keyed by table name. Each row is a list of cells. Headers are omitted."""
    found = {}
    for page in PAGES:
        for name, rows in _TABLE.findall(page.read_text()):
            assert name not in found, f"two tables are named {name}"
            found[name] = [
                [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in rows.splitlines()
            ]
    return found


def table(name: str) -> list[list[str]]:
    """Return the rows of the table named `name`, without the header. Each row is a list of cells."""
    assert name in tables(), f"no table is named {name}. If the documentation needs none, delete this test"
    return tables()[name]
