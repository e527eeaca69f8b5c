"""The request and response bodies of the authentication feature."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

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
    """An access token for authenticating requests, and a refresh token for getting the next pair of tokens."""

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


_SESSION: JsonDict = {
    "id": "6f1c2d3e-4b5a-4978-8695-a4b3c2d1e0f9",
    "created_at": "2026-01-15T10:30:00Z",
    "last_used_at": "2026-01-16T08:00:00Z",
    "expires_at": "2026-02-15T08:00:00Z",
    "ip_address": "203.0.113.7",
    "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "is_current": True,
}


class SessionResponse(BaseModel):
    """A session, which begins with a login."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SESSION]})

    id: UUID
    created_at: datetime
    last_used_at: datetime = Field(description="When its tokens were issued last")
    expires_at: datetime = Field(description="When it ends, unless its tokens are refreshed before")
    ip_address: str | None = Field(description="Address of the client that began it")
    user_agent: str | None = Field(description="User agent of the client that began it")
    is_current: bool = Field(description="Whether this request belongs to it")


class SessionList(BaseModel):
    """Sessions, most recently used first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [_SESSION]}]})

    items: list[SessionResponse]
