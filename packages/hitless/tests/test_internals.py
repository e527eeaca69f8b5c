"""INTERNALS.md lists every name of gunicorn and Uvicorn that hitless uses, with a test for each."""

import ast
import inspect
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1]
INTERNALS = (PACKAGE / "INTERNALS.md").read_text()
MODULES = [
    "gunicorn.arbiter",
    "gunicorn.errors",
    "gunicorn.pidfile",
    "gunicorn.sock",
    "gunicorn.workers.base",
    "uvicorn.config",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.flow_control",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.utils",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvicorn.server",
    "uvicorn_worker._workers",
]
# Names that the modules above happen to define, too. hitless defines them itself, or takes them from Python.
OWN = {"__init__", "__str__", "_transport", "Worker", "bind", "body", "close", "reason", "start", "stop"}


class Row(NamedTuple):
    """A row of a table in INTERNALS.md: names, the hitless files that use them, and the test that covers them."""

    names: list[str]
    files: list[str]
    test: str


def rows() -> list[Row]:
    cells = re.findall(r"^\| (`.+) \| .+? \| (.+?) \| `(test_\w+)` \|$", INTERNALS, re.MULTILINE)
    return [Row(re.findall(r"`(\w+)`", names), re.findall(r"`([\w.]+)`", files), test) for names, files, test in cells]


def names_defined(source: str) -> Iterator[str]:
    """Yield the names of all classes, functions, instance attributes and class attributes in a module."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ClassDef(name=name, body=body):
                yield name
                yield from (target.id for statement in body for target in assigned(statement))
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                yield name


def assigned(statement: ast.stmt) -> list[ast.Name]:
    match statement:
        case ast.Assign(targets=[ast.Name() as name]) | ast.AnnAssign(target=ast.Name() as name):
            return [name]
    return []


def names_used(source: str) -> set[str]:
    """Return the names that a module imports, accesses as attributes, or defines. A definition may be an override."""
    nodes = list(ast.walk(ast.parse(source)))
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    return imported | {node.attr for node in nodes if isinstance(node, ast.Attribute)} | set(names_defined(source))


def test_every_name_of_another_package_is_listed() -> None:
    theirs = {name for module in MODULES for name in names_defined(inspect.getsource(import_module(module)))}
    used = defaultdict(set)
    for path in (PACKAGE / "src/hitless").glob("*.py"):
        for name in names_used(path.read_text()):
            used[name].add(path.name)

    listed = {name for row in rows() for name in row.names}

    assert listed == (used.keys() & theirs) - OWN
    for row in rows():
        for name in row.names:
            assert used[name] & set(row.files), f"{name} is not used in {row.files}"


def test_every_name_has_a_test() -> None:
    tests = "".join(path.read_text() for path in (PACKAGE / "tests").glob("test_*.py"))

    for row in rows():
        assert f"def {row.test}(" in tests


def test_dependencies_are_bounded_to_tested_versions() -> None:
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    locked = {
        package["name"]: package["version"]
        for package in tomllib.loads((PACKAGE.parents[1] / "uv.lock").read_text())["package"]
        if "version" in package
    }

    for dependency in [*project["dependencies"], *project["optional-dependencies"]["websockets"]]:
        name, lowest, limit = re.match(r"([\w-]+)>=([\d.]+),<([\d.]+)", dependency).groups()  # type: ignore[union-attr]
        (tested,) = re.findall(rf"^\| {name} \| (.+) \|$", INTERNALS, re.MULTILINE)
        versions = tested.split(" and ")
        assert versions[0].startswith(lowest)
        assert versions[-1] == locked[name]
        assert not versions[-1].startswith(limit)
