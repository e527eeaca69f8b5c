"""What the README says the container takes is what it takes, within what differs between machines."""

import re

from benchmarks.container import measure
from tests.readme import section

SIZE, MEMORY, TIMES = 1.1, 1.5, 3


def test_the_readmes_figures_are_measured_again(image: str) -> None:
    said = dict(re.findall(r"^\| (.+) \| ([\d.]+) \|$", section("Production"), re.MULTILINE))

    figures = measure(image)

    for name, figure in figures.items():
        # Bare times depend on the machine; two on the same machine do so less.
        margin = SIZE if "Image" in name else MEMORY if "Memory" in name else TIMES if "latter" in name else None
        assert margin is None or 1 / margin < figure / float(said[name]) < margin, f"{name}: {figure}, not {said[name]}"
