"""Measure the size, the memory and the startup time of the container, and print the table for docs/performance.md.

    docker build -t fastapi-app .
    uv run python -m benchmarks.container

The benchmark needs Docker.
"""

import re
import statistics
import sys
import time
from contextlib import redirect_stdout

from processes import get_or_none, until

from benchmarks.servers import parse_image
from tests.conftest import ROOT
from tests.container.engine import run_container, run_docker
from tests.container.service import options, wait_for_workers

MEGABYTE = 1_000_000
WORKERS = 3
# A script that runs in the container. The PSS (proportional set size) of a process divides each shared page by the
# number of processes that share it, so the sum over all processes is their total memory.
READ_MEMORY = """
from contextlib import suppress
from pathlib import Path
for process in Path("/proc").glob("[0-9]*"):
    with suppress(FileNotFoundError, ProcessLookupError):  # processes of health checks end at any time
        name = (process / "cmdline").read_text().split("\\0")[0]
        if name.startswith("gunicorn"):
            lines = [line.split() for line in (process / "smaps_rollup").read_text().splitlines()]
            pss = sum(int(line[1]) for line in lines if line[0] == "Pss:")
            private = sum(int(line[1]) for line in lines if line[0].startswith("Private_"))
            print(name.split()[1], pss * 1024, private * 1024)
"""


def measure(image: str) -> dict[str, float]:
    """Return the measured values by name. Each name includes the unit, except that of a ratio."""
    (base,) = re.findall("^ARG PYTHON_IMAGE=(.*)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    image_size, base_size = (int(run_docker("image", "inspect", "--format={{.Size}}", name)) for name in (image, base))
    started_at = time.monotonic()
    run_docker("run", "--rm", image, "python", "-c", "import app.main")
    import_seconds = time.monotonic() - started_at
    started_at = time.monotonic()
    with run_container(image, *options(WEB_CONCURRENCY=str(WORKERS))) as container:
        url = f"http://{container.ip}:8000/health"
        until(lambda: (health := get_or_none(url)) and health.is_success, "the service responds")
        response_seconds = time.monotonic() - started_at
        wait_for_workers(container, WORKERS)
        processes = [line.split() for line in container.execute("python", "-c", READ_MEMORY).splitlines()]
    (master,) = [int(pss) for name, pss, _ in processes if name == "master"]
    workers = [(int(pss), int(private)) for name, pss, private in processes if name == "worker"]
    pss, private = map(statistics.mean, zip(*workers, strict=True))
    return {
        "Image over its base, MB": (image_size - base_size) / MEGABYTE,
        "`docker run … python -c 'import app.main'`, s": import_seconds,
        "`docker run …` to the first 200, s": response_seconds,
        "Ratio of these two times": response_seconds / import_seconds,
        "Memory of the master, PSS, MB": master / MEGABYTE,
        f"Memory of each of {WORKERS} workers, PSS, MB": pss / MEGABYTE,
        "Memory of a worker that is not shared, MB": private / MEGABYTE,
    }


if __name__ == "__main__":
    image = parse_image("benchmarks.container", __doc__)
    with redirect_stdout(None):  # suppress the logs, which are printed when containers are removed
        figures = measure(image)
    rows = ["| | |", "|---|---|", *(f"| {name} | {value:.1f} |" for name, value in figures.items())]
    sys.stdout.write("\n".join([*rows, ""]))
