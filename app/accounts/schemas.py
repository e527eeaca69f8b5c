"""The request and response bodies of the accounts feature."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.schemas import Input
from app.users.schemas import EXAMPLE_EMAIL, EXAMPLE_PASSWORD, Email, FullName, NewEmail, Password, UncheckedPassword

_TOKEN = "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJCrze8SNFZ4kKvN7xI0VniQ"  # noqa: S105  an example

Token = Annotated[
    str, Field(max_length=256, repr=False, description="From the email: what follows `#token=` in its link")
]


class MailRequest(Input):
    """An email address."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"email": EXAMPLE_EMAIL}]})

    email: Email


class PasswordReset(Input):
    """The token from a password reset email or an invitation, and a new password."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"token": _TOKEN, "new_password": "Tr0ub4dor&3 is shorter"}]}
    )

    token: Token
    new_password: Password


class EmailVerification(Input):
    """The token from an email to verify a new or a changed address, and the account's password."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"token": _TOKEN, "password": EXAMPLE_PASSWORD}]})

    token: Token
    password: UncheckedPassword


class Invitation(Input):
    """The email address and the full name of the user to invite."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"email": EXAMPLE_EMAIL, "full_name": "John Doe"}]})

    email: NewEmail
    full_name: FullName


class Accepted(BaseModel):
    """The response to an accepted request. Whether an email is sent depends on the account."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "accepted"}]})

    status: Literal["accepted"] = "accepted"
