"""The errors in the service's responses, and the handlers that turn exceptions into responses.

    AppError
    ├── RuleViolated          400  the request conflicts with stored data
    ├── UnknownHost           400  the Host header is not in ALLOWED_HOSTS
    ├── AuthenticationFailed  401  credentials are missing, invalid, expired or revoked
    ├── PermissionDenied      403  the caller is authenticated, but not allowed
    ├── NotFound              404
    ├── MethodNotAllowed      405
    ├── Conflict              409
    ├── PayloadTooLarge       413  the body exceeds the limit
    ├── UnsupportedMediaType  415
    ├── InvalidRequest        422  the request does not match its schema
    ├── RateLimited           429  too many requests
    ├── InternalError         500  a bug
    └── ServiceUnavailable    503  the database is unavailable, or the queue of passwords to hash is full

Features derive their own errors from these, for example `EmailTaken(RuleViolated)`, and raise them. A route lists its
errors in `responses=responses(EmailTaken, …)`, which adds their descriptions and examples to the OpenAPI document.
`docs/openapi.py` adds the errors that a route's signature implies, for example 401 and 422.
"""

import http.client
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from itertools import takewhile
from typing import Any, ClassVar

import structlog
from exactjson import TOO_MANY_ERRORS
from fastapi import FastAPI, Request, WebSocketDisconnect
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError, ValidationException, WebSocketRequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import to_jsonable_python
from starlette.exceptions import HTTPException

from app.database import DATABASE_ERRORS, is_outage
from app.security import HashingUnavailable

log = structlog.stdlib.get_logger("app.error")

# Reason phrases from RFC 9110. Python versions before 3.13 have older phrases, but the OpenAPI document must not depend
# on the Python version.
_PHRASES = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "Content Too Large",
    HTTPStatus.UNPROCESSABLE_ENTITY: "Unprocessable Content",
}
# Responses with these statuses must not have a body (RFC 9110, sections 15.3.5 and 15.4.5). If such a
# response had a body, the server would close the connection.
_WITHOUT_BODY = {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
# FastAPI's default handlers.
_FASTAPI_HANDLERS = FastAPI().exception_handlers
# FastAPI's message for a body that is not UTF-8 or is nested too deeply.
_UNREADABLE = "There was an error parsing the body"
# Only field names that match this pattern appear in error responses, because a client may send a secret as a field
# name.
_IDENTIFIER = re.compile(r"[A-Za-z0-9_]{1,64}")
# Maps Pydantic's error types to messages that replace Pydantic's own, which quote the input.
_UNQUOTED = {"uuid_parsing": "Not a valid UUID", "union_tag_invalid": "Not one of the expected tags"}
# These three limits keep the body of a validation error (422) under 8 KiB, whatever the request.
MAX_DETAILS = 20
MAX_FIELD_LENGTH = 128
MAX_MESSAGE_LENGTH = 200


class FieldError(BaseModel):
    """One invalid field."""

    field: str = Field(description="Dotted path of the field, such as `items.0.name`")
    message: str


Details = list[FieldError] | dict[str, JsonValue] | list[JsonValue] | None


class ErrorResponse(BaseModel):
    """The body of every response with a status of 400 or above."""

    model_config = ConfigDict(title="Error")

    error: str = Field(description="A message for people")
    type: str = Field(description="A stable identifier for programs")
    details: Details = Field(None, description="The invalid fields, if any; some routes may return other details")


class StartupError(Exception):
    """The service cannot start. The message tells the operator why, in one line."""


class AppError(Exception):
    """An error that is turned into a response. An instance can override its class's message and add headers.

    `reason` is written to the access log, but is not part of the response.
    """

    status: ClassVar[HTTPStatus]
    type: ClassVar[str]
    message: ClassVar[str]
    headers: ClassVar[dict[str, str]] = {}
    example_headers: ClassVar[dict[str, str]] = {}
    example_details: ClassVar[list[FieldError] | None] = None

    def __init__(
        self, message: str | None = None, *, headers: dict[str, str] | None = None, reason: str | None = None
    ) -> None:
        super().__init__(message or self.message)
        self.extra_headers = headers or {}
        self.reason = reason


class RuleViolated(AppError):
    status = HTTPStatus.BAD_REQUEST
    type = "validation_error"
    message = "Conflicts with the stored data"


class UnknownHost(AppError):
    status = HTTPStatus.BAD_REQUEST
    type = "validation_error"
    message = "Unknown host"


class AuthenticationFailed(AppError):
    status = HTTPStatus.UNAUTHORIZED
    type = "authentication_error"
    message = "Not authenticated"
    headers: ClassVar = {"WWW-Authenticate": "Bearer"}


class PermissionDenied(AppError):
    status = HTTPStatus.FORBIDDEN
    type = "permission_error"
    message = "Not allowed"


class NotFound(AppError):
    status = HTTPStatus.NOT_FOUND
    type = "not_found"
    message = "Not found"


class MethodNotAllowed(AppError):
    status = HTTPStatus.METHOD_NOT_ALLOWED
    type = "method_not_allowed"
    message = "Method not allowed"


class Conflict(AppError):
    status = HTTPStatus.CONFLICT
    type = "conflict"
    message = "Conflicts with the current state"


class PayloadTooLarge(AppError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    type = "payload_too_large"
    message = "The body is too large"


class UnsupportedMediaType(AppError):
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    type = "unsupported_media_type"
    message = "The body must be JSON, with Content-Type: application/json"


class InvalidRequest(AppError):
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    type = "validation_error"
    message = "Validation failed"
    example_details: ClassVar = [FieldError(field="body", message="Field required")]


class RateLimited(AppError):
    status = HTTPStatus.TOO_MANY_REQUESTS
    type = "rate_limited"
    message = "Too many requests, try again later"
    example_headers: ClassVar = {
        "RateLimit-Policy": '"default";q=600;w=60',
        "RateLimit": '"default";r=0;t=42',
        "Retry-After": "42",
    }


class InternalError(AppError):
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    type = "internal_error"
    message = "Internal server error"


class ServiceUnavailable(AppError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    type = "service_unavailable"
    message = "Service unavailable, try again"
    headers: ClassVar = {"Retry-After": "1"}


def error_response(
    error: AppError | type[AppError], *, details: Details = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Build the response for an error."""
    message = str(error) if isinstance(error, AppError) else error.message
    body = ErrorResponse(error=message, type=error.type, details=details)
    return JSONResponse(
        body.model_dump(exclude_none=True), error.status.value, headers={**error.headers, **(headers or {})}
    )


def responses(*errors: type[AppError]) -> dict[int | str, dict[str, Any]]:
    """Build the `responses` argument of a route from the errors that the route can return.

    `build_openapi` adds the schema of the body later. Setting `model` in each entry would add it too, but FastAPI would
    then build a validator for each entry of each route.
    """
    entries: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        body = ErrorResponse(error=error.message, type=error.type, details=error.example_details)
        entry = entries.setdefault(
            error.status.value,
            {
                "description": _PHRASES.get(error.status, error.status.phrase),
                "content": {"application/json": {"examples": {}}},
                "headers": {
                    name: {"schema": {"type": "string"}, "example": value}
                    for name, value in (error.headers | error.example_headers).items()
                },
            },
        )
        entry["content"]["application/json"]["examples"][error.__name__] = {
            "summary": error.message,
            "value": jsonable_encoder(body, exclude_none=True),
        }
    return entries


def add_error_handlers(app: FastAPI) -> None:
    """Register the handlers that turn exceptions into responses.

    `create_app` also calls this function for mounted applications, which keep the handlers that they have registered
    themselves.

    An exception without a more specific handler is a bug, and the response is 500. `_handle_bug` sends this response in
    mounted applications, and `UnhandledErrorMiddleware` in the main application.
    """
    handlers: dict[type[Exception], Callable[..., Awaitable[Response | None]]] = {
        AppError: _handle_app_error,
        HTTPException: _handle_http_exception,
        RequestValidationError: _handle_validation_error,
        WebSocketRequestValidationError: _handle_validation_error,
        WebSocketDisconnect: _ignore_disconnect,
        **dict.fromkeys(DATABASE_ERRORS, _handle_database_error),
        HashingUnavailable: _handle_hashing_unavailable,
        Exception: _handle_bug,
    }
    for exception, handler in handlers.items():
        if app.exception_handlers.get(exception) is _FASTAPI_HANDLERS.get(exception):
            app.exception_handler(exception)(handler)


async def _handle_app_error(_: Request, error: AppError) -> JSONResponse:
    if error.reason:
        structlog.contextvars.bind_contextvars(reason=error.reason)
    return error_response(error, headers=error.extra_headers)


async def _handle_http_exception(request: Request, error: HTTPException) -> Response:
    """Convert an HTTPException from FastAPI or a route to the API's error format. Keep its headers and details."""
    if error.detail == _UNREADABLE:
        return error_response(InvalidRequest, details=[FieldError(field="body", message="Not valid JSON")])
    headers = dict(error.headers or {})
    if error.status_code in _WITHOUT_BODY:
        return Response(status_code=error.status_code, headers=headers)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = _allowed_methods(request)
    # The detail can be any JSON value. Objects and lists become the `details` of the response. Other values, except
    # null, become its message.
    detail = to_jsonable_python(error.detail)
    message, details = (None, detail) if isinstance(detail, dict | list | None) else (str(detail), None)
    for known in AppError.__subclasses__():
        if known.status == error.status_code:
            is_default = message in {None, known.status.phrase}
            return error_response(known if is_default else known(message), details=details, headers=headers)
    body = ErrorResponse(
        error=message or status_phrase(error.status_code), type=f"http_{error.status_code}", details=details
    )
    return JSONResponse(body.model_dump(exclude_none=True), error.status_code, headers=headers)


def status_phrase(status: int) -> str:
    """Return the reason phrase for a status code, or a substitute if the code is nonstandard, for example 499."""
    return http.client.responses.get(status, f"Status {status}")


def _allowed_methods(request: Request) -> str:
    """Return all methods that the path supports. Starlette returns only those of the first matching route."""
    path = request.scope["path"].removeprefix(request.scope["root_path"])  # root_path includes the mount path
    routes = [route for route in iter_route_contexts(request.app.routes) if route.path_regex.match(path)]
    methods = {method for route in routes for method in route.methods or ()}
    # A static file that a mount serves, such as a script of the documentation, is not a route. It supports only GET and
    # HEAD. If the request is for such a file, ignore the methods of routes with the same path.
    if request.scope.get("endpoint") not in [route.endpoint for route in routes]:
        methods = {"GET"}
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


async def _handle_validation_error(_: Request, error: ValidationException) -> JSONResponse:
    # FastAPI leaves the body as bytes if its Content-Type is not JSON.
    if isinstance(error, RequestValidationError) and isinstance(error.body, bytes):
        return error_response(UnsupportedMediaType)
    problems = error.errors()
    details = [_describe(problem) for problem in problems[:MAX_DETAILS]]
    message = InvalidRequest.message
    if len(problems) > MAX_DETAILS:  # only for parameters, and for bodies that are not an `Input`
        message += f"; the first {MAX_DETAILS} of {len(problems)} errors are listed"
    elif any(problem["type"] == TOO_MANY_ERRORS for problem in problems):  # `Input` reports this error instead
        message += f"; more than {MAX_DETAILS} errors are not listed"
    return error_response(InvalidRequest(message), details=details)


async def _ignore_disconnect(_: Request, __: Exception) -> None:
    """Ignore the exception that Starlette raises in a route when a WebSocket client disconnects."""


def _describe(problem: dict[str, Any]) -> FieldError:
    """Describe one validation error without repeating anything that the client sent, except field names."""
    source, *location = problem["loc"]
    if problem["type"] == "json_invalid":
        return FieldError(field="body", message="Not valid JSON")
    names = takewhile(_IDENTIFIER.fullmatch, map(str, location))
    field = ".".join(names)[:MAX_FIELD_LENGTH] or str(source)
    message = _UNQUOTED.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
    if message.startswith("value is not a valid email address"):
        message = "Not a valid email address"  # the original message quotes the address
    return FieldError(field=field, message=message[:MAX_MESSAGE_LENGTH])


async def _handle_database_error(request: Request, error: Exception) -> JSONResponse:
    outages = request.state["outages"]
    if not await is_outage(error, request.state["probe_engine"], is_ongoing=outages.is_ongoing):
        raise error
    outages.add(error)
    return error_response(ServiceUnavailable)


async def _handle_bug(_: Request, __: Exception) -> JSONResponse:
    return error_response(InternalError)


async def _handle_hashing_unavailable(_: Request, error: Exception) -> JSONResponse:
    log.warning("a password cannot be hashed", reason=str(error))
    return error_response(ServiceUnavailable, headers={"Retry-After": "10"})
