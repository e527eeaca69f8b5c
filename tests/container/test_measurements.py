"""The documented figures for the container's size, memory and startup time agree with new measurements."""

from benchmarks.container import measure
from tests.pages import table

# Maximum factors by which a measurement may deviate from the documented figure. Memory and times depend on the machine.
SIZE_TOLERANCE, MEMORY_TOLERANCE, RATIO_TOLERANCE = 1.1, 1.5, 3


def tolerance(name: str) -> float | None:
    """Return the allowed deviation of a figure as a factor, or None for times, which vary too much."""
    if "Image" in name:
        return SIZE_TOLERANCE
    if "Memory" in name:
        return MEMORY_TOLERANCE
    return RATIO_TOLERANCE if "Ratio" in name else None


def test_container_needs_no_more_than_documented(image: str) -> None:
    documented = dict(table("container"))

    figures = measure(image)

    for name, figure in figures.items():
        factor = tolerance(name)
        described = f"{name}: {figure}, not {documented[name]}"
        assert factor is None or 1 / factor < figure / float(documented[name]) < factor, described
