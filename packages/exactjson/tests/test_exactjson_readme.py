"""exactjson's README.md: the example works, the tables are complete, and the listed Pydantic versions are tested."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from availability import cannot_run, package_index_problem
from exactjson import JSONModel
from pydantic import TypeAdapter, ValidationError

PACKAGE = Path(__file__).parents[1]
README = (PACKAGE / "README.md").read_text()
PROJECT = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]


def test_example_in_the_readme_accepts_and_rejects_what_the_readme_says() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    valid = {"day": "2026-11-29", "seats": 3}
    names: dict[str, Any] = {}

    exec(example, names)  # noqa: S102  our own page

    event = TypeAdapter(names["Event"])
    event.validate_python(valid)
    for wrong in ({"day": 86400}, {"seats": "3"}, {"a": 1}, {"labels": {"a": "\0"}}, {"labels": {"\0": "a"}}):
        with pytest.raises(ValidationError):
            event.validate_python(valid | wrong)


def test_readme_lists_every_option() -> None:
    options = {name: str(default) for name, default in vars(JSONModel).items() if name.startswith("json_")}

    assert dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", README, re.MULTILINE)) == options


def test_readme_lists_existing_tests() -> None:
    tests = (PACKAGE / "tests/test_json_model.py").read_text()

    for name in re.findall(r"`(test_\w+)`", README):
        assert f"def {name}(" in tests


def test_pydantic_is_bounded_to_tested_versions() -> None:
    packages = tomllib.loads((PACKAGE.parents[1] / "uv.lock").read_text())["package"]
    (locked,) = [package["version"] for package in packages if package["name"] == "pydantic"]
    (minor, limit) = re.fullmatch(r"pydantic>=([\d.]+),<([\d.]+)", *PROJECT["dependencies"]).groups()  # type: ignore[union-attr]

    (tested,) = re.findall(r"Pydantic ([\d.]+) and ([\d.]+)\. To follow", README)

    assert tested == (f"{minor}.0", locked)
    assert not locked.startswith(limit)


@pytest.mark.peers
def test_exactjson_works_on_the_lowest_version_of_pydantic(tmp_path: Path) -> None:
    if problem := package_index_problem():
        cannot_run(f"tests that install packages: {problem}")
    (lowest,) = re.findall(r"Pydantic ([\d.]+) and", README)
    (tmp_path / "empty.ini").write_text("[pytest]\n")
    options = ["--isolated", "--no-project", f"--python={sys.executable}"]
    packages = [f"--with={requirement}" for requirement in (PACKAGE, f"pydantic=={lowest}", "pytest")]
    tests = ["pytest", "--config-file=empty.ini", "-pno:cacheprovider", f"{PACKAGE}/tests/test_json_model.py"]

    subprocess.run(["uv", "run", *options, *packages, *tests], cwd=tmp_path, check=True)
