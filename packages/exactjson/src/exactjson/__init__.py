"""A Pydantic base class for request bodies that rejects values of the wrong JSON type instead of converting them."""

from exactjson.model import TOO_MANY_ERRORS, JSONModel

__all__ = ["TOO_MANY_ERRORS", "JSONModel"]
