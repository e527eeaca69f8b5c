"""The files around the code agree with each other."""

import re

from tests.conftest import ROOT


def test_the_editors_container_is_made_from_the_images_image() -> None:
    image = re.search(r"^ARG PYTHON_IMAGE=(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)

    base = re.search(r"^FROM (.+)$", (ROOT / ".devcontainer/Dockerfile").read_text(), re.MULTILINE)

    assert image
    assert base
    assert base[1] == image[1]
