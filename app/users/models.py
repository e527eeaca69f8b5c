"""The table of users."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, Integer, String
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, utc_now


def _as_created(context: DefaultExecutionContext) -> datetime:
    """A user who was never changed was last changed when they were created, to the microsecond."""
    created_at: datetime = context.get_current_parameters()["created_at"]  # type: ignore[no-untyped-call]  # SQLAlchemy's
    return created_at


class UserRow(NamedTuple):
    """A user as they are read, where nothing of them is to be changed."""

    id: int
    email: str
    full_name: str
    password_hash: str
    is_active: bool
    is_superuser: bool
    credentials_version: int
    created_at: datetime
    updated_at: datetime


class User(Base):
    """Somebody with an account."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("email = lower(email)", name="email_lower_case"),
        # Finds any part of three characters or more, in any case; on PostgreSQL only.
        Index(
            "ix_users_search",
            "email",
            "full_name",
            postgresql_using="gin",
            postgresql_ops={"email": "gin_trgm_ops", "full_name": "gin_trgm_ops"},
        ),
        # Else SQLite would give a deleted user's id, and so a token of theirs that still runs, to the next one.
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True)
    email: Mapped[str] = mapped_column(String(254), unique=True)
    full_name: Mapped[str] = mapped_column(String(100))
    password_hash: Mapped[str] = mapped_column(String(255))
    is_active: Mapped[bool] = mapped_column(default=True)
    is_superuser: Mapped[bool] = mapped_column(default=False)
    # Rises when all logins must end: the password changed, the account was deactivated. A refresh token remembers the
    # version that it was issued under.
    credentials_version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(default=_as_created, onupdate=utc_now)
