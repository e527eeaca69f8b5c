"""All diagrams in the documentation are valid Mermaid, which GitHub uses to render them."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from availability import cannot_run

from tests.browser.conftest import Visit
from tests.pages import Block, blocks


@pytest.fixture(scope="module")
def mermaid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mermaid's script, from its npm package."""
    if not shutil.which("npm"):
        cannot_run("diagrams: npm is not installed, which downloads Mermaid")
    folder = tmp_path_factory.mktemp("mermaid")
    packed = subprocess.run(["npm", "pack", "--silent", "mermaid@11.17.2"], cwd=folder, check=False, timeout=120)
    if packed.returncode:
        cannot_run("diagrams: the npm registry is unreachable")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as package:
        package.extract("package/dist/mermaid.min.js", folder, filter="data")
    return folder / "package/dist/mermaid.min.js"


DIAGRAMS = [block for block in blocks() if block.language == "mermaid"]


@pytest.mark.parametrize("diagram", DIAGRAMS, ids=lambda diagram: diagram.page.stem)
async def test_diagram_is_rendered(visit: Visit, mermaid: Path, diagram: Block) -> None:
    await visit.page.add_script_tag(path=mermaid)

    svg = await visit.page.evaluate("async text => (await mermaid.render('diagram', text)).svg", diagram.text)

    assert svg.startswith("<svg")
    assert visit.console == []
