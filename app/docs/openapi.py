"""Build the OpenAPI document. This module adds the parts that FastAPI does not generate."""

from typing import Any

from fastapi import FastAPI

from app import PREFIX
from app.errors import (
    AppError,
    AuthenticationFailed,
    ErrorResponse,
    InvalidRequest,
    UnsupportedMediaType,
    responses,
)

REFERENCE = "#/components/schemas/{model}"

DESCRIPTION = f"""\
User accounts and authentication.

### Authentication

`POST {PREFIX}/auth/login` exchanges an email address and a password for an access token and a refresh token. Send the
access token with each request:

    Authorization: Bearer <access_token>

It expires after a few minutes. `POST {PREFIX}/auth/refresh` then exchanges the refresh token for a new pair of tokens.
Each refresh token can be used once. `POST {PREFIX}/auth/logout` ends the session that began with the login.
`GET {PREFIX}/auth/sessions` lists the current user's sessions. `DELETE {PREFIX}/auth/sessions` ends all except the
current one, and `DELETE {PREFIX}/auth/sessions/{{session_id}}` ends one. The tokens of an ended session stop working
immediately.

To try it out on the page at `{PREFIX}/docs`, execute `POST {PREFIX}/users/` and `POST {PREFIX}/auth/login` with their
examples, and enter the access token under *Authorize*.

### Errors

Every error has the same format: `error` is a sentence for people, `type` is a stable identifier for programs, and
`details` lists the invalid fields, if any. Every response has an `X-Request-ID` header: the one from the request, if it
is 1 to 128 characters from `A-Za-z0-9._-`, else a new one. Quote it when you report a problem.

### Rate limits

Requests are counted per client IP address (for IPv6, per /64 network). Logins and registrations have stricter limits of
their own, and logins are also counted per account. `RateLimit-Policy` contains the number of requests (`q`) allowed per
number of seconds (`w`). `RateLimit` contains how many of them remain (`r`), and after how many seconds the count starts
again (`t`):

    RateLimit-Policy: "default";q=600;w=60
    RateLimit: "default";r=599;t=60

If none remain, the response is 429, with the seconds to wait in `Retry-After`. Health checks are not limited. A
response without these headers was not counted.
"""


def build_openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, which is built on the first call."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    document = FastAPI.openapi(app)
    app.openapi_schema = None  # FastAPI has stored the document there, but it is not complete yet
    schemas = document["components"]["schemas"]
    schema = ErrorResponse.model_json_schema(mode="serialization", ref_template=REFERENCE)
    schemas |= {**schema.pop("$defs"), ErrorResponse.__name__: schema}
    for path in document["paths"].values():
        for operation in path.values():
            _add_implied_errors(operation)
            _correct_media_types(operation)
            _add_examples(operation, schemas)
    for schema in schemas.values():
        _drop_redundant_patterns(schema)
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's default format of a 422
        schemas.pop(name, None)
    app.openapi_schema = document
    return document


def _add_implied_errors(operation: dict[str, Any]) -> None:
    """Add the error responses implied by an operation's security requirements, body and parameters."""
    errors: list[type[AppError]] = []
    if "security" in operation:
        errors.append(AuthenticationFailed)
    if "requestBody" in operation:
        errors.append(UnsupportedMediaType)
    if "requestBody" in operation or "parameters" in operation:
        errors.append(InvalidRequest)
    for status, entry in responses(*errors).items():
        operation["responses"][str(status)] = entry
    operation["responses"] = dict(sorted(operation["responses"].items()))


def _correct_media_types(operation: dict[str, Any]) -> None:
    """Document all errors as JSON, even if the route returns another media type. Also remove the field `itemSchema`."""
    for status, response in operation["responses"].items():
        if status.startswith(("4", "5")):
            schema = {"$ref": REFERENCE.format(model=ErrorResponse.__name__)}
            described = response.get("content", {}).get("application/json", {})
            response["content"] = {"application/json": described | {"schema": schema}}
        for media in response.get("content", {}).values():
            media.pop("itemSchema", None)  # a field of OpenAPI 3.2, which few tools support


def _drop_redundant_patterns(schema: dict[str, Any]) -> None:
    """Remove the default pattern of `Input` from string fields that have a `format`.

    Few tools can generate values that match both a pattern and a format.
    """
    for field in schema.get("properties", {}).values():
        if "format" in field:
            field.pop("pattern", None)


def _add_examples(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Copy the schemas' examples to the operation's parameters, body and responses, where Swagger UI looks for them."""
    for parameter in operation.get("parameters", []):
        if "examples" in parameter.get("schema", {}):
            parameter["example"] = parameter["schema"]["examples"][0]
    for described in (operation.get("requestBody", {}), *operation["responses"].values()):
        media = described.get("content", {}).get("application/json", {})
        body = media.get("schema", {})
        schema = schemas.get(body.get("items", body).get("$ref", "").rpartition("/")[2], {})
        if "examples" in schema and "examples" not in media:
            example = _in_field_order(schema)
            media["example"] = [example] if "items" in body else example


def _in_field_order(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema's example with its fields in definition order. Pydantic has sorted them alphabetically."""
    example = schema["examples"][0]
    return {name: example[name] for name in schema["properties"] if name in example}
