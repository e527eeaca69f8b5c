"""Modules import only from the layers below them, and only documented modules of dependencies."""

import ast
import sys
from collections.abc import Iterator
from importlib import import_module
from inspect import ismodule
from pathlib import Path

import pytest

from app.api import TAGS
from tests.conftest import ROOT

FEATURES = {path.parent.name for path in (ROOT / "app").glob("*/router.py")}
# Parts of `app` on which the features are built. They must not import any feature.
FOUNDATION = {
    "capacity",
    "database",
    "dependencies",
    "errors",
    "lifespan",
    "limiter",
    "logging",
    "mail",
    "migrations",
    "pagination",
    "schemas",
    "security",
    "setting_names",
    "setting_types",
    "settings",
    "startup",
    "urls",
}
# For each part of `app`, the parts that it may import.
MAY_IMPORT = {
    **dict.fromkeys(FOUNDATION, FOUNDATION),
    **dict.fromkeys(FEATURES, FOUNDATION | {"users"}),
    "users": FOUNDATION,
    "middleware": FOUNDATION,
    "docs": FOUNDATION,
    "healthcheck": set(),
    "api": FOUNDATION | FEATURES,
    "main": FOUNDATION | {"api", "docs", "middleware"},
    "cli": FOUNDATION | FEATURES | {"main"},
    "__main__": {"cli", "logging"},
}
# Additional parts that single files may import.
FILES_MAY_IMPORT = {"migrations/env.py": {"api"}}  # to import all models
# Names that any module may import from `app` itself.
CONSTANTS = {"NAME", "PREFIX", "TITLE", "__version__"}
# Modules of dependencies that `app` and gunicorn.conf.py may import. All of them are documented as public API.
DOCUMENTED_MODULES = {
    "aiosmtplib",
    "alembic",
    "alembic.autogenerate",
    "alembic.autogenerate.api",
    "alembic.command",
    "alembic.config",
    "alembic.context",
    "alembic.migration",
    "alembic.op",
    "alembic.operations.ops",
    "alembic.runtime.migration",
    "alembic.script",
    "alembic.util",
    "anyio",
    "anyio.to_thread",
    "argon2",
    "argon2.exceptions",
    "asyncpg",
    "dotenv",
    "email_validator",
    "exactjson",
    "fastapi",
    "fastapi.encoders",
    "fastapi.exceptions",
    "fastapi.openapi.utils",
    "fastapi.responses",
    "fastapi.routing",
    "fastapi.security",
    "fastapi.sse",
    "fastapi.status",
    "fastapi_standalone_docs",
    "hitless",
    "jwt",
    "pwdlib",
    "pwdlib.hashers.argon2",
    "pydantic",
    "pydantic.config",
    "pydantic_core",
    "pydantic_core.core_schema",
    "pydantic_settings",
    "redis.asyncio",
    "redis.asyncio.connection",
    "redis.asyncio.retry",
    "redis.backoff",
    "redis.exceptions",
    "redis.maint_notifications",
    "sqlalchemy",
    "sqlalchemy.engine",
    "sqlalchemy.engine.default",
    "sqlalchemy.engine.interfaces",
    "sqlalchemy.event",
    "sqlalchemy.exc",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.orm",
    "sqlalchemy.pool",
    "sqlalchemy.sql.compiler",
    "sqlalchemy.types",
    "starlette.datastructures",
    "starlette.exceptions",
    "starlette.middleware.cors",
    "starlette.requests",
    "starlette.responses",
    "starlette.routing",
    "starlette.types",
    "starlette.websockets",
    "structlog",
    "structlog.contextvars",
    "structlog.dev",
    "structlog.processors",
    "structlog.stdlib",
    "structlog.tracebacks",
    "structlog.typing",
}
# These methods are public. The underscore is there only to prevent conflicts with field names:
# https://docs.python.org/3/library/collections.html#collections.namedtuple
NAMED_TUPLE_METHODS = {"_asdict", "_fields", "_make", "_replace"}

MODULES = sorted((ROOT / "app").rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in [*MODULES, ROOT / "gunicorn.conf.py"]}
every_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
every_program_file = pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(ROOT)))


def imported_names(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the local name and the full dotted name of each import, for example `Base` and `app.database.Base`."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.partition(".")[0]
                yield local, alias.name if alias.asname else local
                yield "", alias.name


def app_imports(path: Path) -> set[str]:
    """Return the dotted names that a module imports from `app`, and those of the modules that contain them."""
    names = {dotted for _, dotted in imported_names(path)}
    return {name for dotted in names for name in (dotted, dotted.rpartition(".")[0]) if name.partition(".")[0] == "app"}


def part(dotted: str) -> str:
    """Return the part of `app` that a name belongs to, for example `users` for `app.users.router`."""
    return dotted.partition(".")[2].partition(".")[0]


def is_module(dotted: str) -> bool:
    """Return whether a dotted name refers to a module, and not to a class or function in a module."""
    parent, _, name = dotted.rpartition(".")
    try:
        return not parent or ismodule(getattr(import_module(parent), name))
    except (AttributeError, ModuleNotFoundError):
        return False


def test_every_part_has_import_rules() -> None:
    parts = {path.relative_to(ROOT / "app").with_suffix("").parts[0] for path in MODULES} - {"__init__"}

    unknown = parts - MAY_IMPORT.keys()

    assert not unknown, (
        f"app/ has new parts: {', '.join(unknown)}. If features may import them, add them to FOUNDATION in "
        "tests/test_architecture.py, else write in MAY_IMPORT what they may import. A feature needs a router.py."
    )


@every_module
def test_module_imports_only_allowed_parts(path: Path) -> None:
    file = path.relative_to(ROOT / "app")
    here = file.with_suffix("").parts[0]

    imported = {part(name) for name in app_imports(path)} - {here, "", *CONSTANTS}
    forbidden = imported - MAY_IMPORT.get(here, set()) - FILES_MAY_IMPORT.get(file.as_posix(), set())

    assert not forbidden, f"app/{file} must not import {', '.join(forbidden)}; see tests/test_architecture.py"


@every_program_file
def test_module_imports_only_documented_modules_of_dependencies(path: Path) -> None:
    modules_by_name = dict(imported_names(path))
    used = set(modules_by_name.values()) | {name.rpartition(".")[0] for name in modules_by_name.values()}
    for node in ast.walk(TREES[path]):  # for example `sqlalchemy.util.await_only` after `import sqlalchemy`
        if isinstance(node, ast.Attribute):
            root, *attributes = ast.unparse(node).split(".")
            used |= {".".join([modules_by_name[root], *attributes])} if root in modules_by_name else set()
    own_or_standard = sys.stdlib_module_names | {"app", ""}

    undocumented = {
        name
        for name in used - DOCUMENTED_MODULES
        if name.partition(".")[0] not in own_or_standard and "(" not in name and is_module(name)
    }

    assert not undocumented, (
        f"{path.relative_to(ROOT)} uses {', '.join(sorted(undocumented))}. If the dependency documents the module for "
        "use by applications, add it to DOCUMENTED_MODULES in tests/test_architecture.py, else use something else."
    )


@every_program_file
def test_module_uses_no_private_name_of_a_dependency(path: Path) -> None:
    defined = {name for tree in TREES.values() for name in private_definitions(tree)}

    used = {
        name
        for node in ast.walk(TREES[path])
        for name in (getattr(node, "attr", ""), *getattr_strings(node), *imported_attributes(node))
        if is_private(name)
    }
    private = used - defined - NAMED_TUPLE_METHODS

    assert not private, f"{path.relative_to(ROOT)} uses {', '.join(sorted(private))}, which app/ does not define"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_definitions(tree: ast.AST) -> Iterator[str]:
    """Yield every private name that a module defines: variables, functions, classes and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def getattr_strings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
        yield from (str(argument.value) for argument in node.args if isinstance(argument, ast.Constant))


def imported_attributes(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from (name for alias in node.names for name in alias.name.split("."))
    if isinstance(node, ast.ImportFrom):
        yield from (node.module or "").split(".")


@every_module
def test_module_has_no_import_inside_a_function(path: Path) -> None:
    """An import inside a function usually works around a circular import, or hides a dependency."""
    nested = [
        node.lineno
        for function in ast.walk(TREES[path])
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]

    assert nested == []


@every_module
def test_module_has_a_docstring(path: Path) -> None:
    docstring = ast.get_docstring(TREES[path])

    assert docstring
    assert docstring.splitlines()[0].endswith((".", "?"))


def test_modules_have_no_circular_imports() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    graph = {name: app_imports(path) & (names.keys() - {name}) for name, path in names.items()}

    while leaves := {name for name, needs in graph.items() if not needs}:
        graph = {name: needs - leaves for name, needs in graph.items() if name not in leaves}

    assert graph == {}


def test_api_lists_every_feature() -> None:
    not_features = {"", "errors", "settings", *CONSTANTS}
    assert {part(name) for name in app_imports(ROOT / "app" / "api.py")} - not_features == FEATURES
    assert {tag["name"] for tag in TAGS} == FEATURES
