"""The table of users."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, Integer, String
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, utc_now


def _as_created(context: DefaultExecutionContext) -> datetime:
    """Return the value of `created_at`, so that both are equal until the first update."""
    created_at: datetime = context.get_current_parameters()["created_at"]  # type: ignore[no-untyped-call]  # SQLAlchemy's
    return created_at


class UserRecord(NamedTuple):
    """A user's columns, read without a session."""

    id: int
    email: str
    full_name: str
    password_hash: str
    is_active: bool
    is_superuser: bool
    security_stamp: UUID
    created_at: datetime
    updated_at: datetime


class User(Base):
    """A user account."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("email = lower(email)", name="email_lower_case"),
        # For searching by any part of three or more characters, in any case. PostgreSQL only.
        Index(
            "ix_users_search",
            "email",
            "full_name",
            postgresql_using="gin",
            postgresql_ops={"email": "gin_trgm_ops", "full_name": "gin_trgm_ops"},
        ),
        # Otherwise SQLite would give the id of a deleted user, whose tokens may still be valid, to the next user.
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True)
    email: Mapped[str] = mapped_column(String(254), unique=True)
    full_name: Mapped[str] = mapped_column(String(100))
    password_hash: Mapped[str] = mapped_column(String(255))
    is_active: Mapped[bool] = mapped_column(default=True)
    is_superuser: Mapped[bool] = mapped_column(default=False)
    # Changed to end all logins: when the password is changed or the account deactivated. Every token contains it.
    security_stamp: Mapped[UUID] = mapped_column(default=uuid4)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(default=_as_created, onupdate=utc_now)
