"""The request and response bodies of authentication."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.schemas import Input
from app.users.schemas import EXAMPLE_EMAIL, EXAMPLE_PASSWORD, Email, UncheckedPassword

_ACCESS_TOKEN = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxIn0.LIPvVfUvi3mqJy8SMtpHZhtgqeGQ3sM2aP9WZZDHH5k"  # noqa: S105  an example
_REFRESH_TOKEN = "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJCrze8SNFZ4kKvN7xI0VniQ"  # noqa: S105  an example


class Credentials(Input):
    """An email address and a password."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"email": EXAMPLE_EMAIL, "password": EXAMPLE_PASSWORD}]})

    email: Email
    password: UncheckedPassword


class RefreshRequest(Input):
    """A refresh token."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"refresh_token": _REFRESH_TOKEN}]})

    refresh_token: Annotated[str, Field(max_length=256, repr=False)]


class TokenPair(BaseModel):
    """An access token for requests, and a refresh token for the next pair of tokens."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "access_token": _ACCESS_TOKEN,
                    "refresh_token": _REFRESH_TOKEN,
                    "token_type": "bearer",
                    "expires_in": 900,
                }
            ]
        }
    )

    access_token: Annotated[str, Field(repr=False)]
    refresh_token: Annotated[str, Field(repr=False)]
    token_type: Literal["bearer"] = "bearer"  # noqa: S105  the scheme of RFC 6750
    expires_in: int = Field(description="Lifetime of the access token, seconds")
