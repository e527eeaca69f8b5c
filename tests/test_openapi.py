"""The OpenAPI document is valid, complete, true, and changes only on purpose."""

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from app import NAME, TITLE, __version__
from app.api import TAGS
from app.docs.openapi import build_openapi
from app.main import create_app
from app.settings import Settings
from tests.conftest import ROOT, change, make_settings, serve

SNAPSHOT = ROOT / "tests" / "openapi.json"
# What takes no access token: what gives one, and what is for everybody.
LOGINS = {"POST /auth/login", "POST /auth/refresh"}
PUBLIC = LOGINS | {"POST /auth/logout", "POST /users/", "GET /health", "GET /health/live", "GET /health/ready"}


@pytest.fixture
def document() -> dict[str, Any]:
    return build_openapi(create_app(make_settings()))


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_it_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


def test_it_is_what_was_committed(document: dict[str, Any]) -> None:
    """Where the change is meant, `python -m app openapi > tests/openapi.json` shows it in review."""
    assert json.loads(SNAPSHOT.read_text()) == document


def test_it_says_what_the_service_is(document: dict[str, Any]) -> None:
    info = document["info"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert info["title"] == TITLE
    assert info["version"] == __version__ == project["version"]
    assert project["name"] == NAME
    assert {"description", "contact", "license"} <= info.keys()
    assert [tag["name"] for tag in TAGS if tag["description"]] == [tag["name"] for tag in document["tags"]]
    assert (
        document["components"]["securitySchemes"]["BearerAuth"].items()
        >= {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
        }.items()
    )


def test_every_operation_is_described_and_named_after_its_function(document: dict[str, Any]) -> None:
    names = []
    for name, operation in operations(document):
        assert operation["summary"], name
        assert operation["description"], name
        assert len(operation["tags"]) == 1, name
        assert re.fullmatch(r"[a-z_]+", operation["operationId"]), name
        names.append(operation["operationId"])

    assert len(set(names)) == len(names)


def test_every_request_and_response_has_an_example_that_fits_its_schema(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        bodies = [operation["requestBody"]] if "requestBody" in operation else []
        for described in (*bodies, *operation["responses"].values()):
            for media in described.get("content", {}).values():
                examples = [example["value"] for example in media.get("examples", {}).values()]
                examples += [media["example"]] if "example" in media else []
                assert examples, name
                for example in examples:
                    schema = media["schema"] | {"components": document["components"]}
                    Draft202012Validator(schema).validate(example)


def test_what_needs_a_login_says_so_and_nothing_else_does(document: dict[str, Any]) -> None:
    public = {name for name, operation in operations(document) if not operation.get("security")}

    assert public == PUBLIC
    for name, operation in operations(document):
        assert ("401" in operation["responses"]) == (name not in public or name in LOGINS)


def test_limits_are_documented_where_they_hold(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert ("429" in operation["responses"]) == ("/health" not in name), name
        assert ("413" in operation["responses"]) or "requestBody" not in operation, name


def test_every_error_has_the_one_form(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                (media,) = response["content"].values()
                assert media["schema"] == {"$ref": "#/components/schemas/ErrorResponse"}, (name, status)
    assert "HTTPValidationError" not in document["components"]["schemas"]


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_the_docs_pages_load_nothing_from_elsewhere(client: httpx.AsyncClient, path: str) -> None:
    page = await client.get(path)

    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert assets
    for asset in assets:
        assert asset.startswith(path), asset
        assert (await client.get(asset)).status_code == 200


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/docs/swagger-ui.css"])
async def test_the_docs_can_be_switched_off(settings: Settings, path: str) -> None:
    off = change(settings, docs=False)
    async with serve(off) as service:
        response = await service.client.get(path)

    assert response.status_code == 404
    assert response.json() == {"error": "Not found", "type": "not_found"}
    assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert response.headers["cache-control"] == "no-store"
    assert "ratelimit" in response.headers


async def test_there_is_no_page_for_a_kind_of_login_that_is_not_offered(client: httpx.AsyncClient) -> None:
    assert (await client.get("/docs/oauth2-redirect")).status_code == 404


async def test_the_document_is_served(client: httpx.AsyncClient, document: dict[str, Any]) -> None:
    for _ in range(2):
        response = await client.get("/openapi.json")

        assert response.json() == document
