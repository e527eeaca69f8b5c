"""The README's diagrams are drawn by the library that GitHub draws them with."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.browser.conftest import Visit
from tests.conftest import cannot_run
from tests.readme import blocks, section


@pytest.fixture(scope="module")
def mermaid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mermaid in one file, from its package."""
    if not shutil.which("npm"):
        cannot_run("diagrams: there is no npm to get Mermaid with")
    folder = tmp_path_factory.mktemp("mermaid")
    packed = subprocess.run(["npm", "pack", "--silent", "mermaid@11.17.2"], cwd=folder, check=False, timeout=120)
    if packed.returncode:
        cannot_run("diagrams: no npm registry can be reached")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as package:
        package.extract("package/dist/mermaid.min.js", folder, filter="data")
    return folder / "package/dist/mermaid.min.js"


@pytest.mark.parametrize("number", [0, 1], ids=["request", "container"])
async def test_it_can_be_drawn(visit: Visit, mermaid: Path, number: int) -> None:
    diagram = blocks("mermaid", section("Read it"))[number]
    await visit.page.add_script_tag(path=mermaid)

    drawing = await visit.page.evaluate("async text => (await mermaid.render('diagram', text)).svg", diagram)

    assert drawing.startswith("<svg")
    assert visit.complaints == []
