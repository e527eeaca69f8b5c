"""Types shared by the request bodies and parameters of several features."""

from contextlib import suppress
from typing import Annotated, Any, LiteralString, Self, cast

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

MAX_ID = 2**63 - 1  # the maximum of PostgreSQL's bigint

# An id in a path such as `/users/{user_id}`.
Id = Annotated[int, Path(ge=1, le=MAX_ID, examples=[1])]
# The default pattern of strings in request bodies. PostgreSQL cannot store NUL characters.
NO_NUL = r"^[^\x00]*$"
# A pattern for text that may contain any character, for example a password, which is never stored.
ANY_TEXT = r"^"
# A pattern for text in one line without control characters, for example a name.
SINGLE_LINE = r"^[^\x00-\x1f\x7f-\x9f]*$"
# Metadata key that marks core schemas that already check JSON types.
CHECKED = "checks_json_types"


def _require_exact_json_types(schema: Any, handler: GetCoreSchemaHandler, seen: set[str]) -> None:  # noqa: ANN401  any part
    """Make a core schema reject other JSON types instead of coercing them, and make lists fail at the first bad item.

    `ConfigDict(strict=True)` would also reject dates, enums and sets, which FastAPI passes as strings and lists.

    Args:
        schema: A schema or a part of one, modified in place. It may already have been modified as part of another.
        handler: Resolves references to types that are used several times.
        seen: The references that have already been visited.
    """
    if isinstance(schema, list | tuple):
        for part in schema:
            _require_exact_json_types(part, handler, seen)
    elif isinstance(schema, dict) and not isinstance(schema.get("type"), str):  # a dict of schemas by name
        _require_exact_json_types(list(schema.values()), handler, seen)
    elif isinstance(schema, dict) and CHECKED not in schema.get("metadata", {}):
        # Keys are always strings in JSON. Defaults and metadata are not schemas.
        parts = schema.keys() - {"keys_schema", "default", "metadata"}
        _require_exact_json_types([schema[key] for key in parts], handler, seen)
        _restrict(schema, schema["type"])
        if schema["type"] == "definition-ref" and schema["schema_ref"] not in seen:
            seen.add(schema["schema_ref"])
            definition = None
            with suppress(LookupError):  # a recursive model, which is modified once it is complete
                definition = handler.resolve_ref_schema(cast("CoreSchema", schema))
            _require_exact_json_types(definition, handler, seen)


def _restrict(schema: dict[str, Any], kind: str) -> None:
    if kind in {"bool", "float", "int", "str"}:
        schema["strict"] = True
    if kind == "str":
        schema.setdefault("pattern", NO_NUL)
    elif kind in {"frozenset", "list", "set", "tuple"}:
        schema["fail_fast"] = True
    elif kind in {"date", "datetime", "time", "timedelta"}:  # Pydantic would read a number as seconds since 1970
        _reject_types(schema, {bool, float, int}, "Input should be a string in ISO 8601 format")
    elif kind == "enum":  # Pydantic would read `"1"`, `true` and `1.0` as 1
        others = {bool, float, str} - {type(member.value) for member in schema["members"]}
        _reject_types(schema, others, "Input should have the JSON type of an allowed value")


def _reject_types(schema: dict[str, Any], types: set[type], message: LiteralString) -> None:
    def check(value: object) -> object:
        if type(value) in types:
            raise PydanticCustomError("json_type", message)
        return value

    inner = schema.copy()
    reference = inner.pop("ref", None)
    schema.clear()
    schema |= core_schema.no_info_before_validator_function(check, inner, ref=reference, metadata={CHECKED: True})


class Input(BaseModel):
    """The base class of request bodies.

    Unknown fields are rejected. So are values of another JSON type, for example `"1"` for an integer or `1` for a
    boolean. Types that JSON represents as strings, such as dates, UUIDs and enums, are parsed. There are two
    limitations: `Literal[1]` accepts `true` and `1.0`, and a `type` alias of `int` cannot be both a key and a value.
    """

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _require_exact_json_types(schema, handler, set())
        return schema

    @model_validator(mode="wrap")
    @classmethod
    def _limit_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401  any JSON
        """Replace too many errors with a single one: building all of them would block the event loop for seconds."""
        try:
            return handler(data)
        except ValidationError as error:
            if error.error_count() <= MAX_DETAILS:
                raise
            raise PydanticCustomError(TOO_MANY_ERRORS, "Too many errors to list") from None
