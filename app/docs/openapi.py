"""The OpenAPI document: its prose, and the examples that schemas carry shown where they are looked for."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

DESCRIPTION = """\
User accounts, and the logins that protect them.

### Authentication

`POST /auth/login` exchanges an email address and a password for an access token and a refresh token. Send the access
token with each request:

    Authorization: Bearer <access_token>

It expires after a few minutes. `POST /auth/refresh` then exchanges the refresh token for a new pair; each refresh token
works once. `POST /auth/logout` ends the login.

To try it out on the page at `/docs`, execute `POST /users/` and `POST /auth/login` as they stand, and give the access
token to *Authorize*.

### Errors

Every error has the same form: `error` is a sentence for a person, `type` a stable word for a program, and `details`,
where fields are at fault, names them. Every response carries an `X-Request-ID`: the one you sent, if it is 1-128 of
`A-Za-z0-9._-`, else a new one. Quote it when you report a problem.

### Rate limits

Requests are counted by client address (an IPv6 address with its whole /64 network): logins and registrations against
tighter limits of their own, logins by account as well, all others together. `RateLimit-Policy` says how many requests
(`q`) the limit allows in how many seconds (`w`), `RateLimit` how many remain (`r`) and in how many seconds the count
starts anew (`t`):

    RateLimit-Policy: "default";q=600;w=60
    RateLimit: "default";r=599;t=60

When none remain, the answer is 429, and `Retry-After` says when to try again. Health checks and this documentation are
not limited. A response without these headers was not counted, which happens when the counter is out of order.
"""


def build_openapi(app: FastAPI) -> dict[str, Any]:
    """Builds the document; FastAPI asks for it once and keeps it."""
    if app.openapi_schema is None:
        app.openapi_schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            contact=app.contact,
            license_info=app.license_info,
            tags=app.openapi_tags,
            routes=app.routes,
        )
        _show_examples(app.openapi_schema)
    return app.openapi_schema


def _show_examples(document: dict[str, Any]) -> None:
    """Copies each schema's example to what it describes, where that has none: Swagger UI looks for it only there."""
    schemas = document["components"]["schemas"]
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", []):
                if "examples" in parameter["schema"]:
                    parameter["example"] = parameter["schema"]["examples"][0]
            for described in (operation.get("requestBody", {}), *operation["responses"].values()):
                media = described.get("content", {}).get("application/json", {})
                name = media.get("schema", {}).get("$ref", "").rpartition("/")[2]
                if name in schemas and "examples" in schemas[name] and "examples" not in media:
                    media["example"] = _in_field_order(schemas[name])


def _in_field_order(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema's example, as a person would write it. Pydantic has put its fields in alphabetical order."""
    example = schema["examples"][0]
    return {name: example[name] for name in schema["properties"] if name in example}
