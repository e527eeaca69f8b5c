"""The request and response bodies of the users feature."""

from datetime import datetime
from typing import Annotated
from unicodedata import normalize

from pydantic import MISSING, AfterValidator, BaseModel, ConfigDict, EmailStr, Field, StringConstraints, validate_email
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from app.schemas import ANY_TEXT, SINGLE_LINE, Input

MAX_LOCAL_PART_BYTES = 64


def normalize_email(address: str) -> str:
    """Return the normal form of an email address, which is used to store and compare addresses.

    Characters are lowercased one by one, because `str.lower` converts the Greek letter sigma differently at the end of
    a word. The result is normalized to Unicode NFC a second time, because some accented letters have a composed form
    only in lower case.
    """
    return normalize("NFC", "".join(character.lower() for character in normalize("NFC", address)))


def validate_normal_form(address: str) -> str:
    """Check that the normal form of an email address is a valid address, and return the normal form.

    The normal form may be too long even if the original is not, because a character may take more bytes in lower case.

    Raises:
        PydanticCustomError: The address is longer than 254 bytes (either in UTF-8 or with its domain in ASCII), or the
            part before the @ is longer than 64 bytes (RFC 5321, section 4.5.3.1).
    """
    if len(address.partition("@")[0].encode()) > MAX_LOCAL_PART_BYTES:
        raise PydanticCustomError("value_error", "value is not a valid email address: too long before the @")
    validate_email(address)
    return address


Email = Annotated[EmailStr, AfterValidator(normalize_email), Field(max_length=254)]
# The email address of a new account, or the new address of an existing one. Do not use this type to look up accounts,
# because their addresses may predate this check.
NewEmail = Annotated[Email, AfterValidator(validate_normal_form)]
# Passwords are omitted from the repr of models, because a repr may be logged.
Password = Annotated[str, Field(min_length=8, max_length=128, pattern=ANY_TEXT, repr=False)]
UncheckedPassword = Annotated[str, Field(max_length=128, pattern=ANY_TEXT, repr=False)]
FullName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=SINGLE_LINE)]
Search = Annotated[str, StringConstraints(min_length=1, max_length=254, pattern=SINGLE_LINE)]

EXAMPLE_EMAIL = "user@example.com"
EXAMPLE_PASSWORD = "correct horse battery staple"  # noqa: S105  an example


class UserCreate(Input):
    """A new user account."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"email": EXAMPLE_EMAIL, "password": EXAMPLE_PASSWORD, "full_name": "John Doe"}]
        }
    )

    email: NewEmail = Field(description="Unique regardless of case; stored in lower case")
    password: Password
    full_name: FullName


class ProfileUpdate(Input):
    """The fields that users can change in their own account. Omitted fields keep their values."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"full_name": "Jane Doe"}]})

    email: NewEmail | MISSING = MISSING
    full_name: FullName | MISSING = MISSING


class UserUpdate(ProfileUpdate):
    """The fields that superusers can change in any account. Omitted fields keep their values."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"is_active": False}]})

    is_active: bool | MISSING = MISSING
    is_superuser: bool | MISSING = MISSING


class PasswordChange(Input):
    """The current password and a new one."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"current_password": EXAMPLE_PASSWORD, "new_password": "Tr0ub4dor&3 is shorter"}]
        }
    )

    current_password: UncheckedPassword
    new_password: Password


_USER: JsonDict = {
    "id": 1,
    "email": EXAMPLE_EMAIL,
    "full_name": "John Doe",
    "is_active": True,
    "is_superuser": False,
    "email_verified": True,
    "pending_email": "new@example.com",
    "created_at": "2026-01-15T10:30:00Z",
    "updated_at": "2026-01-15T10:30:00Z",
}


class UserResponse(BaseModel):
    """A user."""

    # `list_users` uses the names of these fields to select columns, so `User` needs an attribute with each
    # name. So does `UserRecord`, which `read_me` returns.

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [_USER]})

    id: int
    email: str
    full_name: str
    is_active: bool
    is_superuser: bool
    email_verified: bool
    pending_email: str | None = Field(description="The address that replaces `email` once it is confirmed")
    created_at: datetime
    updated_at: datetime


class UserPage(BaseModel):
    """A page of users, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [_USER], "next_cursor": "MQ"}]})

    items: list[UserResponse]
    next_cursor: str | None = Field(description="The `cursor` of the next page; null on the last page")
