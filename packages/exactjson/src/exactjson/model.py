"""The base class `JSONModel`."""

from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from exactjson.schema import Restriction

# The type of the single error that replaces all errors if there are more than `json_max_errors`.
TOO_MANY_ERRORS = "too_many_errors"


class JSONModel(BaseModel):
    """A model that rejects values of the wrong JSON type instead of converting them.

    For example, it rejects `"1"` for an integer and `1` for a boolean. It also rejects unknown fields. Types that JSON
    represents as strings, such as dates, UUIDs and enums, are parsed.
    """

    model_config = ConfigDict(extra="forbid")

    json_string_pattern: ClassVar[str | None] = None
    """The regular expression that strings and string keys must match, unless their type has its own pattern."""
    json_max_errors: ClassVar[int] = 100
    """If there are more errors, one error replaces them. Listing them all could block the event loop for seconds."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        Restriction(cls.json_string_pattern, handler).apply(schema)
        return schema

    @model_validator(mode="wrap")
    @classmethod
    def _limit_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401  any JSON
        try:
            return handler(data)
        except ValidationError as error:
            if error.error_count() <= cls.json_max_errors:
                raise
            raise PydanticCustomError(TOO_MANY_ERRORS, "Too many errors to list") from None
