"""A Pydantic base class for request bodies that accepts only the JSON types that it names."""

from exactjson.model import TOO_MANY_ERRORS, JSONModel

__all__ = ["TOO_MANY_ERRORS", "JSONModel"]
