"""Check every response in the tests against the OpenAPI document."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from jsonschema import Draft202012Validator


def check_conformance(document: dict[str, Any]) -> Callable[[httpx.Response], Awaitable[None]]:
    """Return an httpx event hook that fails the test if a response does not match the OpenAPI document."""
    # Put fixed paths first, so that `/users/me` is matched before `/users/{user_id}`, as in the router.
    paths = sorted(document["paths"], key=lambda path: "{" in path)
    patterns = {path: re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))) for path in paths}

    async def check(response: httpx.Response) -> None:
        requested = response.request.url.path.removesuffix("\n")  # Starlette's routes also match a trailing line feed
        path = next((path for path in paths if patterns[path].fullmatch(requested)), None)
        operation = document["paths"].get(path, {}).get(response.request.method.lower())
        if operation is None:  # the document has no such path or method
            return
        name = f"{operation['operationId']} {response.status_code}"
        assert str(response.status_code) in operation["responses"], f"{name} is not documented"
        documented = operation["responses"][str(response.status_code)]
        await response.aread()
        if "content" not in documented:
            assert response.content == b"", f"{name} should be empty"
            return
        media_type = response.headers["content-type"].partition(";")[0]
        assert media_type in documented["content"], f"{name}: {media_type} is not documented"
        if media_type != "application/json":
            return
        schema = documented["content"][media_type]["schema"]
        Draft202012Validator(schema | {"components": document["components"]}).validate(response.json())
        if response.is_error:
            assert {name.lower() for name in documented.get("headers", {})} <= response.headers.keys(), name

    return check
