"""What the README says the container takes is what it takes, within what differs between machines."""

import re

from benchmarks.container import measure
from tests.conftest import ROOT

SIZE, MEMORY, TIMES = 1.1, 1.5, 3


def test_the_readmes_figures_are_measured_again(image: str) -> None:
    readme = (ROOT / "README.md").read_text()

    figures = measure(image)

    for name, figure in figures.items():
        (said,) = re.findall(rf"^\| {re.escape(name)} \| ([\d.]+) \|$", readme, re.MULTILINE)
        # Bare times depend on the machine; two on the same machine do so less.
        margin = SIZE if "Image" in name else MEMORY if "Memory" in name else TIMES if "latter" in name else None
        assert margin is None or 1 / margin < figure / float(said) < margin, f"{name}: {figure}, not {said}"
