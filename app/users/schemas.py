"""What goes in and out of the users' routes."""

from datetime import datetime
from typing import Annotated

from pydantic import MISSING, AfterValidator, BaseModel, ConfigDict, EmailStr, Field, StringConstraints
from pydantic.config import JsonDict

Email = Annotated[EmailStr, AfterValidator(str.lower), Field(max_length=254)]
# Secrets stay out of what a model looks like in a log.
Password = Annotated[str, Field(min_length=8, max_length=128, repr=False)]
GivenPassword = Annotated[str, Field(max_length=128, repr=False)]
# Control characters are no part of a name, and PostgreSQL refuses a NUL.
_PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
FullName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=_PRINTABLE)]
Search = Annotated[str, StringConstraints(min_length=1, max_length=254, pattern=_PRINTABLE)]

EXAMPLE_EMAIL = "user@example.com"
EXAMPLE_PASSWORD = "correct horse battery staple"  # noqa: S105  nobody's


class Input(BaseModel):
    """A request body. A field that is not expected is an error, and so is a value of another type: 1 is not true."""

    model_config = ConfigDict(extra="forbid", strict=True)


class UserCreate(Input):
    """A registration."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"email": EXAMPLE_EMAIL, "password": EXAMPLE_PASSWORD, "full_name": "John Doe"}]
        }
    )

    email: Email = Field(description="Unique regardless of case; stored in lower case")
    password: Password
    full_name: FullName


class ProfileUpdate(Input):
    """What users may change of themselves. A field that is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"full_name": "Jane Doe"}]})

    email: Email | MISSING = MISSING
    full_name: FullName | MISSING = MISSING


class UserUpdate(ProfileUpdate):
    """What a superuser may change of anybody. A field that is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"is_active": False}]})

    is_active: bool | MISSING = MISSING
    is_superuser: bool | MISSING = MISSING


class PasswordChange(Input):
    """A new password, and the current one as proof."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"current_password": EXAMPLE_PASSWORD, "new_password": "Tr0ub4dor&3 is shorter"}]
        }
    )

    current_password: GivenPassword
    new_password: Password


_USER: JsonDict = {
    "id": 1,
    "email": EXAMPLE_EMAIL,
    "full_name": "John Doe",
    "is_active": True,
    "is_superuser": False,
    "created_at": "2026-01-15T10:30:00Z",
    "updated_at": "2026-01-15T10:30:00Z",
}


class UserResponse(BaseModel):
    """A user, without anything secret."""

    # Each field is a column: a page selects exactly these.

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [_USER]})

    id: int
    email: str
    full_name: str
    is_active: bool
    is_superuser: bool
    created_at: datetime
    updated_at: datetime


class UserPage(BaseModel):
    """Some users, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [_USER], "next_cursor": "MQ"}]})

    items: list[UserResponse]
    next_cursor: str | None = Field(description="Give it as `cursor` to get the next page; null on the last one")
