"""Make Pydantic's core schemas stricter. Pydantic builds the validator of a type from its core schema.

See https://docs.pydantic.dev/latest/internals/architecture/.
"""

import re
from collections.abc import Callable
from typing import Any, LiteralString, cast

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

# The metadata key of core schemas that have already been modified to check JSON types.
CHECKED = "checks_json_types"
# Entries of a core schema whose values contain no other schemas.
NO_SCHEMAS = {"default", "metadata"}
# Entries of a core schema that describe the keys of a JSON object. These keys are always strings.
KEYS = {"extras_keys_schema", "keys_schema"}
# Strings that Pydantic would parse as seconds since 1970 for a `datetime`, for example `20261129`.
NUMBER = re.compile(r"[+-]?[0-9.]+")


class Restriction:
    """Make a core schema reject wrong JSON types instead of converting them. Stop at the first invalid item of a list.

    `ConfigDict(strict=True)` would be too strict. It rejects strings for dates and enums, and lists for sets. JSON has
    no other way to represent these types.
    """

    def __init__(self, string_pattern: str | None, handler: GetCoreSchemaHandler) -> None:
        """Store the default pattern for strings, and Pydantic's handler, which resolves references to other schemas."""
        self._string_pattern = string_pattern
        self._handler = handler
        self._seen: set[tuple[str, bool]] = set()  # references already followed, each with `is_key`

    def apply(self, schema: Any, *, is_key: bool = False) -> None:  # noqa: ANN401  any part
        """Modify a schema, or a part of one, in place. This is idempotent, because schemas may share parts."""
        if isinstance(schema, list | tuple):
            for part in schema:
                self.apply(part, is_key=is_key)
        elif isinstance(schema, dict) and not isinstance(schema.get("type"), str):  # a dict of schemas by name
            self.apply(list(schema.values()), is_key=is_key)
        elif isinstance(schema, dict) and CHECKED not in schema.get("metadata", {}):
            for name in schema.keys() - NO_SCHEMAS:
                self.apply(schema[name], is_key=is_key or name in KEYS)
            self._restrict(schema, schema["type"], is_key=is_key)
            if schema["type"] == "definition-ref":
                self._follow(schema, is_key=is_key)

    def _follow(self, reference: dict[str, Any], *, is_key: bool) -> None:
        """Modify the schema that a reference points to."""
        seen = (reference["schema_ref"], is_key)
        if seen in self._seen:
            return
        self._seen.add(seen)
        try:
            definition = self._handler.resolve_ref_schema(cast("CoreSchema", reference))
        except LookupError:  # an enclosing model, whose schema is modified once it is complete
            return
        self.apply(definition, is_key=is_key)

    def _restrict(self, schema: dict[str, Any], kind: str, *, is_key: bool) -> None:
        if kind == "str":
            schema["strict"] = True
            if self._string_pattern is not None:
                schema.setdefault("pattern", self._string_pattern)
        elif is_key:  # JSON keys are strings, so keys of any other type must be parsed
            return
        elif kind in {"bool", "float", "int"}:
            schema["strict"] = True
            if kind == "float":  # Python's JSON parser accepts NaN and Infinity
                schema.setdefault("allow_inf_nan", False)
        elif kind in {"frozenset", "list", "set", "tuple"}:
            schema["fail_fast"] = True
        elif kind in {"date", "datetime", "time", "timedelta"}:  # Pydantic would parse a number as seconds since 1970
            _reject(schema, _is_number, "Input should be a string in ISO 8601 format, not a number")
        elif kind == "enum":  # Pydantic would accept `"1"`, `true` and `1.0` for the member 1
            others = {bool, float, str} - {type(member.value) for member in schema["members"]}
            _reject(schema, lambda value: type(value) in others, "Input should have the JSON type of an allowed value")


def _is_number(value: object) -> bool:
    return type(value) in {bool, float, int} or (isinstance(value, str) and NUMBER.fullmatch(value) is not None)


def _reject(schema: dict[str, Any], is_wrong: Callable[[object], bool], message: LiteralString) -> None:
    def check(value: object) -> object:
        if is_wrong(value):
            raise PydanticCustomError("json_type", message)
        return value

    inner = schema.copy()
    reference = inner.pop("ref", None)
    schema.clear()
    schema |= core_schema.no_info_before_validator_function(check, inner, ref=reference, metadata={CHECKED: True})
