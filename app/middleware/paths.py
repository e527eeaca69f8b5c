"""What a path says about which rules hold for a request."""

from starlette.types import Scope


def route_path(scope: Scope) -> str:
    """The path as the routes have it, without the prefix under which a proxy serves the application."""
    path: str = scope["path"]
    # The end of a route's pattern matches before a line feed too, so `/auth/login\n` is `/auth/login`.
    return path.removeprefix(scope.get("root_path", "")).removesuffix("\n")


def section(path: str) -> str:
    """The path's first part: `users` for `/users/me`."""
    return path[1:].partition("/")[0]
