"""What a path says about which rules hold for a request."""

from starlette.types import Scope


def route_path(scope: Scope) -> str:
    """The path as the routes have it, without the prefix under which a proxy serves the application."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def section(path: str) -> str:
    """The path's first part: `users` for `/users/me`."""
    return path[1:].partition("/")[0]
