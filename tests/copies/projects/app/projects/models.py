"""The database tables of projects and their members."""

from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

from sqlalchemy import JSON, BigInteger, Enum, ForeignKey, Integer, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.database import Base, PrimaryKey, utc_now

_Id = BigInteger().with_variant(Integer, "sqlite")


class Status(StrEnum):
    """The state of a project."""

    PLANNED = "planned"
    ACTIVE = "active"
    DONE = "done"


class MemberRole(StrEnum):
    """A member's role in a project. Only owners may add members and upload the project's document."""

    OWNER = "owner"
    MEMBER = "member"


class Member(Base):
    """A user's membership in a project."""

    __tablename__ = "project_members"

    project_id: Mapped[int] = mapped_column(_Id, ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(_Id, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True)
    role: Mapped[MemberRole] = mapped_column(Enum(MemberRole, native_enum=False, length=20))
    joined_at: Mapped[datetime] = mapped_column(default=utc_now)
    notified_at: Mapped[datetime | None]


class Project(Base):
    """A project."""

    __tablename__ = "projects"

    id: Mapped[PrimaryKey]
    key: Mapped[UUID] = mapped_column(unique=True)
    name: Mapped[str] = mapped_column(String(100))
    status: Mapped[Status] = mapped_column(Enum(Status, native_enum=False, length=20))
    starts_on: Mapped[date]
    # Stored as an integer number of cents, because SQLite has no decimal type.
    budget_cents: Mapped[int] = mapped_column(BigInteger)
    tags: Mapped[list[str]] = mapped_column(JSON)
    document_size: Mapped[int | None] = mapped_column(BigInteger)
    document_sha256: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    members: Mapped[list[Member]] = relationship(order_by=Member.user_id)

    @property
    def budget(self) -> Decimal:
        """Return the budget in units of the currency, for example 1500.50. It is stored in cents."""
        return Decimal(self.budget_cents) / 100

    def role_of(self, user_id: int) -> MemberRole | None:
        """Return the role of a user in this project, or None if the user is not a member."""
        return next((member.role for member in self.members if member.user_id == user_id), None)
