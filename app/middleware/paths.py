"""Map a request path to the rules that apply to it."""

from starlette.types import Scope


def route_path(scope: Scope) -> str:
    """Return the path that the routes match, without ROOT_PATH."""
    path: str = scope["path"]
    # Starlette's patterns end with `$`, which also matches before a line feed: `/auth/login\n` is `/auth/login`.
    return path.removeprefix(scope.get("root_path", "")).removesuffix("\n")


def section(path: str) -> str:
    """Return the first segment of a path: `users` for `/users/me`."""
    return path[1:].partition("/")[0]
