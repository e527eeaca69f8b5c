"""Who may import whom, read from the imports themselves."""

import ast
from pathlib import Path

import pytest

from app.api import TAGS
from tests.conftest import ROOT

FEATURES = {path.parent.name for path in (ROOT / "app").glob("*/router.py")}
# What everything stands on; it knows nothing of what stands on it.
GROUND_FLOOR = {"database", "errors", "limiter", "pool", "reader", "security", "settings", "state"}
# What each part of `app` may import of the others. Parts that are not listed see everything.
MAY_IMPORT = {
    **dict.fromkeys(FEATURES, GROUND_FLOOR | {"users"}),
    "users": GROUND_FLOOR,
    "health": GROUND_FLOOR | {"server"},  # whether the server is ending
    "middleware": GROUND_FLOOR,
    "server": GROUND_FLOOR | {"lifespan"},
    "docs": GROUND_FLOOR,
    **dict.fromkeys(GROUND_FLOOR, GROUND_FLOOR),
}
# Of `app` itself; everything may know what it is called.
CONSTANTS = {"NAME", "TITLE", "__version__"}
MODULES = sorted((ROOT / "app").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """The modules of `app` that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "app"}


def part(name: str) -> str:
    """`users` for `app.users.router`."""
    return name.partition(".")[2].partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_it_may(path: Path) -> None:
    here = path.relative_to(ROOT).with_suffix("").parts[1]

    there = {part(name) for name in imports(path)} - {here, "", *CONSTANTS}

    assert there <= MAY_IMPORT.get(here, there)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_at_its_top(path: Path) -> None:
    """An import inside a function mostly dodges a circle, or hides what a module needs."""
    tree = ast.parse(path.read_text())

    nested = [
        node.lineno
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]

    assert nested == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))

    assert docstring
    assert docstring.splitlines()[0].endswith(".")


def test_no_modules_import_each_other_in_a_circle() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    graph = {name: imports(path) & (names.keys() - {name}) for name, path in names.items()}

    while leaves := {name for name, needs in graph.items() if not needs}:
        graph = {name: needs - leaves for name, needs in graph.items() if name not in leaves}

    assert graph == {}


def test_every_feature_is_in_the_list() -> None:
    assert {part(name) for name in imports(ROOT / "app" / "api.py")} == FEATURES
    assert {tag["name"] for tag in TAGS} == FEATURES
