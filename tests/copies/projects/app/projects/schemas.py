"""The request and response bodies of projects."""

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema
from pydantic.config import JsonDict

from app.projects.models import MemberRole, Status
from app.schemas import MAX_ID, SINGLE_LINE, Input

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=SINGLE_LINE)]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=30, pattern=SINGLE_LINE)]
# Pydantic alone would also accept a Unix timestamp as a date in a query string.
QueryDate = Annotated[date, BeforeValidator(date.fromisoformat)]
# State the limits explicitly, because Pydantic's generated schema contains only the minimum. Clients that generate
# requests from the schema need all of them.
_MONEY: JsonDict = {
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": 9_999_999_999.99, "multipleOf": 0.01},
        {"type": "string", "pattern": r"^\d{1,10}(\.\d{1,2})?$"},
    ]
}
Money = Annotated[Decimal, Field(ge=0, max_digits=12, decimal_places=2), WithJsonSchema(_MONEY, mode="validation")]

_CREATE: JsonDict = {
    "key": "6c84fb90-12c4-11e1-840d-7b25c5ee775a",
    "name": "Moon landing",
    "status": "planned",
    "starts_on": "2027-01-31",
    "budget": "1500.50",
    "tags": ["space"],
}
_MEMBER: JsonDict = {
    "user_id": 1,
    "role": "owner",
    "joined_at": "2026-01-15T10:30:00Z",
    "notified_at": "2026-01-15T10:30:01Z",
}
_PROJECT: JsonDict = {"id": 1, **_CREATE, "created_at": "2026-01-15T10:30:00Z", "members": [_MEMBER]}


class ProjectCreate(Input):
    """A new project."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CREATE]})

    key: UUID = Field(description="Chosen by the client, so that a request can be sent again")
    name: Name
    status: Status
    starts_on: date
    budget: Money
    tags: Annotated[set[Tag], Field(max_length=10)]


class MemberCreate(Input):
    """The user to add as a member, and the member's role."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": 2, "role": "member"}]})

    user_id: Annotated[int, Field(ge=1, le=MAX_ID)]
    role: MemberRole


class MemberResponse(BaseModel):
    """A member of a project."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [_MEMBER]})

    user_id: int
    role: MemberRole
    joined_at: datetime
    notified_at: datetime | None


class ProjectResponse(BaseModel):
    """A project and its members."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [_PROJECT]})

    id: int
    key: UUID
    name: str
    status: Status
    starts_on: date
    budget: Decimal
    tags: list[str]
    created_at: datetime
    members: list[MemberResponse]


class ProjectPage(BaseModel):
    """A page of projects, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [_PROJECT], "next_cursor": "MQ"}]})

    items: list[ProjectResponse]
    next_cursor: str | None = Field(description="The `cursor` of the next page; null on the last page")


class DocumentResponse(BaseModel):
    """The document of a project."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"size": 1, "sha256": "00" * 32}]})

    size: int
    sha256: str
