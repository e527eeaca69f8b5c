"""Measures the image and a container of it, and prints the README's table.

    docker build -t fastapi-app .
    uv run python -m benchmarks.container

Takes Docker.
"""

import re
import statistics
import sys
import time
from contextlib import redirect_stdout

from app import NAME
from tests.conftest import ROOT
from tests.container.engine import cli, running
from tests.container.service import options, workers
from processes import get_or_none, until

MEGABYTE = 1_000_000
WORKERS = 3
# PSS is a process's share of each page that processes share, so that the sum over all is what they take together.
READ_MEMORY = """
from contextlib import suppress
from pathlib import Path
for process in Path("/proc").glob("[0-9]*"):
    with suppress(FileNotFoundError, ProcessLookupError):  # health checks come and go
        name = (process / "cmdline").read_text().split("\\0")[0]
        if name.startswith("gunicorn"):
            lines = [line.split() for line in (process / "smaps_rollup").read_text().splitlines()]
            pss = sum(int(line[1]) for line in lines if line[0] == "Pss:")
            private = sum(int(line[1]) for line in lines if line[0].startswith("Private_"))
            print(name.split()[1], pss * 1024, private * 1024)
"""


def measure(image: str) -> dict[str, float]:
    """Gives each figure by its name, in the unit that the name says."""
    (base,) = re.findall("^ARG PYTHON_IMAGE=(.*)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    of_image, of_base = (int(cli("image", "inspect", "--format={{.Size}}", name)) for name in (image, base))
    started_at = time.monotonic()
    cli("run", "--rm", image, "python", "-c", "import app.main")
    imported_in = time.monotonic() - started_at
    started_at = time.monotonic()
    with running(image, *options(WEB_CONCURRENCY=str(WORKERS))) as container:
        url = f"http://{container.ip}:8000/health"
        until(lambda: (health := get_or_none(url)) and health.is_success, "it answers")
        answered_in = time.monotonic() - started_at
        until(lambda: workers(container) == WORKERS, "all workers")
        processes = [line.split() for line in container.execute("python", "-c", READ_MEMORY).splitlines()]
    (master,) = [int(pss) for name, pss, _ in processes if name == "master"]
    of_workers = [(int(pss), int(private)) for name, pss, private in processes if name == "worker"]
    pss, private = map(statistics.mean, zip(*of_workers, strict=True))
    return {
        "Image over its base, MB": (of_image - of_base) / MEGABYTE,
        "`docker run … python -c 'import app.main'`, s": imported_in,
        "`docker run …` to the first 200, s": answered_in,
        "The latter by the former": answered_in / imported_in,
        "Memory of the master, PSS, MB": master / MEGABYTE,
        f"Memory of each of {WORKERS} workers, PSS, MB": pss / MEGABYTE,
        "Memory that a worker shares with nobody, MB": private / MEGABYTE,
    }


if __name__ == "__main__":
    with redirect_stdout(None):  # where containers that end show their logs
        figures = measure(sys.argv[1] if len(sys.argv) > 1 else NAME)
    rows = ["| | |", "|---|---|", *(f"| {name} | {value:.1f} |" for name, value in figures.items())]
    sys.stdout.write("\n".join([*rows, ""]))
