"""The OpenAPI document is valid, complete and correct, and changes only intentionally."""

import json
import re
import tomllib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi.sse import EventSourceResponse
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from app import NAME, PREFIX, TITLE, __version__
from app.api import TAGS
from app.docs.openapi import build_openapi
from app.errors import NotFound, responses
from app.main import create_app
from app.settings import Settings
from tests.conftest import ROOT, change, make_settings, serve

SNAPSHOT = ROOT / "tests" / "openapi.json"
# Operations that check credentials other than an access token, so they too can return 401.
LOGINS = {
    "POST /auth/login",
    "POST /auth/refresh",
    "POST /auth/email-verification/confirm",
}
PUBLIC = LOGINS | {
    "POST /auth/logout",
    "POST /auth/password-reset",
    "POST /auth/password-reset/confirm",
    "POST /auth/email-verification",
    "POST /users/",
    "GET /health",
    "GET /health/live",
    "GET /health/ready",
}


@pytest.fixture
def document() -> dict[str, Any]:
    return build_openapi(create_app(make_settings(mail=True)))


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path.removeprefix(PREFIX)}", operation


def test_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


def test_document_equals_the_committed_one(document: dict[str, Any]) -> None:
    """After an intended change, run `python -m app openapi > tests/openapi.json`, so that a review shows the change."""
    assert json.loads(SNAPSHOT.read_text()) == document


def test_info_describes_the_service(document: dict[str, Any]) -> None:
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


def test_operations_have_a_summary_a_description_and_an_id(document: dict[str, Any]) -> None:
    names = []
    for name, operation in operations(document):
        assert operation["summary"], name
        assert operation["description"], name
        assert len(operation["tags"]) == 1, name
        assert re.fullmatch(r"[a-z_]+", operation["operationId"]), name
        names.append(operation["operationId"])

    assert len(set(names)) == len(names)


def test_request_and_response_examples_match_their_schemas(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        bodies = [operation["requestBody"]] if "requestBody" in operation else []
        for described in (*bodies, *operation["responses"].values()):
            for media_type, media in described.get("content", {}).items():
                if media_type != "application/json":
                    continue
                examples = [example["value"] for example in media.get("examples", {}).values()]
                examples += [media["example"]] if "example" in media else []
                assert examples, name
                for example in examples:
                    schema = media["schema"] | {"components": document["components"]}
                    Draft202012Validator(schema).validate(example)


def test_operations_declare_whether_they_require_authentication(document: dict[str, Any]) -> None:
    public = {name for name, operation in operations(document) if not operation.get("security")}

    assert public == PUBLIC
    for name, operation in operations(document):
        assert ("401" in operation["responses"]) == (name not in public or name in LOGINS)


def test_operations_declare_their_limits(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert ("429" in operation["responses"]) == ("/health" not in name), name
        assert ("413" in operation["responses"]) or "requestBody" not in operation, name


def test_schemas_have_different_names(document: dict[str, Any]) -> None:
    renamed = [name for name in document["components"]["schemas"] if "__" in name]

    assert not renamed, (
        f"Two classes have one name, so FastAPI has renamed both: {', '.join(renamed)}. Clients see these names: "
        "rename one of the classes."
    )


def test_errors_share_one_schema(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                (media,) = response["content"].values()
                assert media["schema"] == {"$ref": "#/components/schemas/ErrorResponse"}, (name, status)
    assert "HTTPValidationError" not in document["components"]["schemas"]


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_docs_pages_load_all_assets_from_the_service(client: httpx.AsyncClient, path: str) -> None:
    page = await client.get(path)

    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert assets
    for asset in assets:
        assert asset.startswith(PREFIX + path), asset
        assert (await client.get(asset.removeprefix(PREFIX))).status_code == 200


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/docs/swagger-ui.css"])
async def test_disabled_docs_return_404(settings: Settings, path: str) -> None:
    async with serve(change(settings, docs=False)) as service:
        response = await service.client.get(path)

    assert response.status_code == 404
    assert response.json() == {"error": "Not found", "type": "not_found"}
    assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert response.headers["cache-control"] == "no-store"
    assert "ratelimit" in response.headers


async def test_docs_have_no_oauth2_redirect_page(client: httpx.AsyncClient) -> None:
    assert (await client.get("/docs/oauth2-redirect")).status_code == 404


async def test_document_is_served(settings: Settings, document: dict[str, Any]) -> None:
    async with serve(change(settings, mail=True)) as service:
        for _ in range(2):
            response = await service.client.get("/openapi.json")

            assert response.json() == document


def test_event_stream_and_its_errors_have_their_own_media_types() -> None:
    app = create_app(make_settings())

    @app.get("/events-in-a-test", response_class=EventSourceResponse, responses=responses(NotFound))
    async def events() -> AsyncIterator[int]:
        yield 1

    document = build_openapi(app)
    OpenAPIV31SpecValidator(document).validate()

    found = document["paths"]["/events-in-a-test"]["get"]["responses"]
    assert found["200"]["content"] == {"text/event-stream": {}}
    assert found["404"]["content"].keys() == {"application/json"}


def test_operations_may_have_unusual_responses_and_parameters() -> None:
    app = create_app(make_settings())
    parameter = {"name": "filter", "in": "query", "content": {"application/json": {"schema": {"type": "object"}}}}
    responses: dict[int | str, dict[str, Any]] = {
        404: {"description": "There is none"},
        "5XX": {"description": "Broken"},
    }

    @app.get("/test", responses=responses, openapi_extra={"parameters": [parameter]})
    async def read() -> None: ...

    document = build_openapi(app)

    assert build_openapi(app) is document
    OpenAPIV31SpecValidator(document).validate()
    operation = document["paths"]["/test"]["get"]
    assert operation["parameters"] == [parameter]
    for status in ("404", "5XX"):
        described = operation["responses"][status]["content"]["application/json"]
        assert described["schema"] == {"$ref": "#/components/schemas/ErrorResponse"}
