"""The README, as tests read it to hold it to its word."""

import re

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def section(heading: str) -> str:
    """What the README says below a heading, down to the next of the same rank or above."""
    found = re.search(rf"^(##+) {re.escape(heading)}\n(.*?)(?=^##(?!#)|^\1 |\Z)", README, re.DOTALL | re.MULTILINE)
    assert found, f"README.md has no section “{heading}” to hold to its word: with a section goes its test"
    return found[2]


def blocks(language: str, text: str = README) -> list[str]:
    """The blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
