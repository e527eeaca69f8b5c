"""The repository's configuration files are consistent with each other."""

import re

from tests.conftest import ROOT


def test_devcontainer_uses_the_base_image_of_the_dockerfile() -> None:
    production = re.search(r"^ARG PYTHON_IMAGE=(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)

    development = re.search(r"^FROM (.+)$", (ROOT / ".devcontainer/Dockerfile").read_text(), re.MULTILINE)

    assert production
    assert development
    assert development[1] == production[1]
