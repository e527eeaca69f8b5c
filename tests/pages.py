"""The pages of the documentation. Tests find a block or a table by its name, never by the words around it.

A name is written where readers do not see it:

    ```sh name=backup                   a command, see `command`
    ```python title=app/notes/x.py      a file of the tutorial, see `tutorial`
    ```diff title=app/api.py            a change of a file, see `tutorial`
    <!-- table=settings -->             before a table, see `table`
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
    """A block of code: its page, its language, its name and title if it has them, and its text."""

    page: Path
    language: str
    name: str
    title: str
    text: str


@cache
def blocks() -> list[Block]:
    """Return the blocks of all pages."""
    found = []
    for page in PAGES:
        for language, info, text in _BLOCK.findall(page.read_text()):
            options = dict(option.split("=", 1) for option in info.split())
            found.append(Block(page, language, options.get("name", ""), options.get("title", ""), text))
    return found


def command(name: str) -> str:
    """Return the block of shell commands with a name. Several pages may have it, if it is the same."""
    found = {block.text for block in blocks() if block.name == name}
    assert found, f"no block is named {name}. If the documentation needs none, delete this test"
    assert len(found) == 1, f"blocks with different commands are named {name}"
    return found.pop()


def tutorial() -> list[Block]:
    """Return the blocks of the tutorial in order: files, changes of files, and commands."""
    return [block for block in blocks() if block.page.name == "add-a-feature.md"]


@cache
def tables() -> dict[str, list[list[str]]]:
    """Return the cells of every table with a name, without its header."""
    found = {}
    for page in PAGES:
        for name, rows in _TABLE.findall(page.read_text()):
            assert name not in found, f"two tables are named {name}"
            found[name] = [
                [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in rows.splitlines()
            ]
    return found


def table(name: str) -> list[list[str]]:
    """Return the cells of a table, without its header."""
    assert name in tables(), f"no table is named {name}. If the documentation needs none, delete this test"
    return tables()[name]
