"""Map a request path to the rules that apply to it."""

from collections.abc import Callable, Iterator, Sequence
from http import HTTPMethod
from re import Pattern
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.routing import BaseRoute, Route, WebSocketRoute, compile_path
from starlette.types import Scope

Option = TypeVar("Option")

# Used in place of an HTTP method for WebSocket routes and handshakes, so that handshakes match only WebSocket routes.
# In ASGI, handshakes have no method.
WEBSOCKET = "WEBSOCKET"
# The ASGI messages that start the response to a request or to a WebSocket handshake.
RESPONSE_STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


def route_path(scope: Scope) -> str:
    """Return the path used for route matching: the request path without the ROOT_PATH prefix."""
    path: str = scope["path"]
    # Remove a trailing line feed. Starlette's route patterns end with `$`, which also matches before a trailing line
    # feed, so `/auth/login\n` matches the route `/auth/login`.
    return path.removeprefix(scope.get("root_path", "")).removesuffix("\n")


def is_below(path: str, roots: tuple[str, ...]) -> bool:
    """Return whether a path is one of the roots or is below one. Each root ends with a slash, such as `/health/`."""
    return f"{path}/".startswith(roots)


def iter_routes(routes: Sequence[BaseRoute], prefix: str = "") -> Iterator[tuple[str, RouteContext]]:
    """Yield each route with its full path, including mounts and the routes of mounted applications."""
    for route in iter_route_contexts(routes):
        path = f"{prefix}{route.path or ''}"
        yield path, route
        if isinstance(mounted := getattr(route, "app", None), FastAPI):
            yield from iter_routes(mounted.routes, path)


def list_options(
    routes: Sequence[BaseRoute], get: Callable[[Any], Option | None], default: Option
) -> list[tuple[str, Pattern[str], Option]]:
    """Return the method, the path pattern and the option for each method of each route.

    Routes after the last one with an option are left out, because they have the default.

    Options, for example rate limits, are declared on routes. With this list, middleware that runs before the router can
    apply them.

    Args:
        routes: The routes, in the order in which the router compares them with a request.
        get: Returns the option of a route, or None if the route has the default.
        default: The option of all other routes.
    """
    options = [
        (method, compile_path(path)[0], default if (option := get(route)) is None else option)
        for path, route in iter_routes(routes)
        for method in _list_methods(route)
    ]
    while options and options[-1][2] == default:  # to save time: `find_option` returns the default anyway
        options.pop()
    return options


def _list_methods(route: RouteContext) -> set[str]:
    match route.original_route:
        case Route():
            return route.methods or set(HTTPMethod)  # a route to a class accepts every method
        case WebSocketRoute():
            return {WEBSOCKET}
        case _:  # a mount; `iter_routes` also lists its routes if it uses FastAPI
            return set()


def find_option(options: list[tuple[str, Pattern[str], Option]], method: str, path: str, default: Option) -> Option:
    """Return the option of the first matching route, or `default`. Get `options` from `list_options`."""
    for route_method, pattern, option in options:
        if method == route_method and pattern.match(path):
            return option
    return default
