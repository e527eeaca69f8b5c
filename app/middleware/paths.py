"""Map a request path to the rules that apply to it."""

from collections.abc import Callable
from re import Pattern
from typing import Any, TypeVar

from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute
from starlette.types import Scope

Option = TypeVar("Option")


def route_path(scope: Scope) -> str:
    """Return the path that the routes match, without ROOT_PATH."""
    path: str = scope["path"]
    # Starlette's patterns end with `$`, which also matches before a line feed: `/auth/login\n` is `/auth/login`.
    return path.removeprefix(scope.get("root_path", "")).removesuffix("\n")


def first_segment(path: str) -> str:
    """Return the first segment of a path: `users` for `/users/me`."""
    return path[1:].partition("/")[0]


def list_option(routes: list[BaseRoute], get: Callable[[Any], Option | None]) -> list[tuple[str, Pattern[str], Option]]:
    """Return the method, the pattern and the option of each route that has the option.

    Middleware that runs before the router can so apply a rule that is written at a route.
    """
    return [
        (method, route.path_regex, option)
        for route in iter_route_contexts(routes)
        if (option := get(route)) is not None
        for method in route.methods or ()
    ]


def find_option(options: list[tuple[str, Pattern[str], Option]], method: str, path: str, default: Option) -> Option:
    """Return the option of the route that a request matches."""
    for route_method, pattern, option in options:
        if method == route_method and pattern.match(path):
            return option
    return default
