"""Types shared by the request bodies and parameters of several features."""

from typing import Annotated, Any, LiteralString, Self

from fastapi import Path
from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from app.errors import MAX_DETAILS, TOO_MANY_ERRORS

MAX_ID = 2**63 - 1  # PostgreSQL's bigint

# An id in a path, such as `/users/{user_id}`.
Id = Annotated[int, Path(ge=1, le=MAX_ID, examples=[1])]
# The default pattern of strings in request bodies. PostgreSQL cannot store a NUL.
NO_NUL = r"^[^\x00]*$"
# A pattern for text that may contain any character, such as a password, which is never stored.
ANY_TEXT = r"^"
# A pattern for text in one line, such as a name, which needs no control characters.
SINGLE_LINE = r"^[^\x00-\x1f\x7f-\x9f]*$"


def _require_exact_json_types(schema: Any) -> None:  # noqa: ANN401  a schema, or any part of one
    """Let a core schema accept only the JSON types that it names, and let lists stop at their first invalid item.

    `ConfigDict(strict=True)` would also reject dates, enums and sets, which FastAPI passes as strings and lists.
    """
    if isinstance(schema, dict):
        for key, part in schema.items():
            # In JSON, the keys of an object are always strings. A default is no schema.
            if key not in {"keys_schema", "default", "metadata"}:
                _require_exact_json_types(part)
        if isinstance(schema.get("type"), str):  # it may be a field named `type`
            _restrict(schema, schema["type"])
    elif isinstance(schema, list):
        for part in schema:
            _require_exact_json_types(part)


def _restrict(schema: dict[str, Any], kind: str) -> None:
    if kind in {"bool", "float", "int", "str"}:
        schema["strict"] = True
    if kind == "str":
        schema.setdefault("pattern", NO_NUL)
    elif kind in {"frozenset", "list", "set", "tuple"}:
        schema["fail_fast"] = True
    elif kind in {"date", "datetime", "time", "timedelta"}:  # for Pydantic, a number would be the seconds since 1970
        _reject_types(schema, {bool, float, int}, "Input should be a string in ISO 8601 format")
    elif kind == "enum":  # for Pydantic, `"1"`, `true` and `1.0` would be 1
        others = {bool, float, str} - {type(member.value) for member in schema["members"]}
        _reject_types(schema, others, "Input should have the JSON type of an allowed value")


def _reject_types(schema: dict[str, Any], types: set[type], message: LiteralString) -> None:
    def check(value: object) -> object:
        if type(value) in types:
            raise PydanticCustomError("json_type", message)
        return value

    inner = schema.copy()
    schema.clear()
    schema |= core_schema.no_info_before_validator_function(check, inner, ref=inner.pop("ref", None))


class Input(BaseModel):
    """The base class of request bodies.

    Unknown fields are errors. So are values of another JSON type, such as `"1"` for an integer or `1` for a boolean.
    Types that JSON writes as strings, such as dates, UUIDs and enums, are parsed.
    """

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _require_exact_json_types(schema)
        return schema

    @model_validator(mode="wrap")
    @classmethod
    def _limit_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401  any JSON
        """Replace a huge number of errors with one: building them would block the event loop for seconds."""
        try:
            return handler(data)
        except ValidationError as error:
            if error.error_count() <= MAX_DETAILS:
                raise
            raise PydanticCustomError(TOO_MANY_ERRORS, "Too many errors to list") from None
