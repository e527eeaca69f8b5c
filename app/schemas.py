"""Types shared by the request bodies and parameters of several features."""

from typing import Annotated, ClassVar

from exactjson import JSONModel
from fastapi import Path

from app.errors import MAX_DETAILS

MAX_ID = 2**63 - 1  # the maximum of PostgreSQL's bigint

# An id in a URL path, for example in `/users/{user_id}`.
Id = Annotated[int, Path(ge=1, le=MAX_ID, examples=[1])]
# The default pattern for strings in request bodies. It rejects NUL characters, which PostgreSQL cannot store.
NO_NUL = r"^[^\x00]*$"
# A pattern that accepts any text, including control characters. Use it only for values that are never stored in the
# database, such as passwords.
ANY_TEXT = r"^"
# A pattern for a single line of text without control characters, for example a name.
SINGLE_LINE = r"^[^\x00-\x1f\x7f-\x9f]*$"


class Input(JSONModel):
    """The base class of request bodies. Unknown fields and values of the wrong JSON type are rejected."""

    json_string_pattern: ClassVar = NO_NUL
    json_max_errors: ClassVar = MAX_DETAILS
