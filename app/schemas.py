"""Types that the request bodies and parameters of several features share."""

from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, ConfigDict

MAX_ID = 2**63 - 1  # PostgreSQL's bigint

# An id in a path, such as `/users/{user_id}`.
Id = Annotated[int, Path(ge=1, le=MAX_ID, examples=[1])]
# A pattern for text in one line. PostgreSQL cannot store a NUL, and no name needs other control characters.
SINGLE_LINE = r"^[^\x00-\x1f\x7f]*$"


class Input(BaseModel):
    """The base class of request bodies. Unknown fields and values of another type are errors: 1 is not true."""

    model_config = ConfigDict(extra="forbid", strict=True)
