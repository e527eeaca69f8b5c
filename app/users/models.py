"""The tables of users and of their logins."""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import CheckConstraint, ForeignKey, Index, LargeBinary, String
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, PrimaryKey, utc_now


def _same_as_created_at(context: DefaultExecutionContext) -> datetime:
    """Return the `created_at` of the new row, so that `updated_at` has the same value until the first update."""
    created_at: datetime = context.get_current_parameters()["created_at"]  # type: ignore[no-untyped-call]  # SQLAlchemy's
    return created_at


@dataclass(frozen=True, slots=True)
class UserRecord:
    """A row of the table `users`, read by `FastReader` without an ORM session."""

    id: int
    email: str
    full_name: str
    password_hash: str = field(repr=False)
    is_active: bool
    is_superuser: bool
    email_verified: bool
    pending_email: str | None
    security_stamp: UUID = field(repr=False)
    created_at: datetime
    updated_at: datetime


class User(Base):
    """A user account."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("email = lower(email)", name="email_lower_case"),
        # Trigram index for case-insensitive substring searches with at least three characters. PostgreSQL only.
        Index(
            "ix_users_search",
            "email",
            "full_name",
            postgresql_using="gin",
            postgresql_ops={"email": "gin_trgm_ops", "full_name": "gin_trgm_ops"},
        ),
        # Do not reuse the id of a deleted user, because access tokens with this id may not have expired yet. Without
        # this option, SQLite may give the id to the next user.
        {"sqlite_autoincrement": True},
    )

    id: Mapped[PrimaryKey]
    email: Mapped[str] = mapped_column(String(254), unique=True)
    full_name: Mapped[str] = mapped_column(String(100))
    password_hash: Mapped[str] = mapped_column(String(255))  # empty until an invited user sets a password
    is_active: Mapped[bool] = mapped_column(default=True)
    is_superuser: Mapped[bool] = mapped_column(default=False)
    email_verified: Mapped[bool] = mapped_column(default=False)
    # The address that will replace `email` once the user confirms it.
    pending_email: Mapped[str | None] = mapped_column(String(254))
    # Every login session and every access token contains a copy of this value, and is valid only while its copy
    # matches. Replacing the value therefore logs the user out everywhere. This happens, for example, when the password
    # is changed or the account is deactivated.
    security_stamp: Mapped[UUID] = mapped_column(default=uuid4)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(default=_same_as_created_at, onupdate=utc_now)


class Login(Base):
    """A login session, with its family of refresh tokens.

    A refresh token consists of the login's id and a signed secret. Only the newest token is valid, except that the
    previous one still works for a short time. Any other use of an old token may mean that the token was stolen. The row
    is then deleted, which ends the login session.

    The table is defined in app/users, not in app/auth, because each authenticated request reads a user together with
    the login.
    """

    __tablename__ = "refresh_tokens"

    login_id: Mapped[UUID] = mapped_column("family", primary_key=True, default=uuid4)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    security_stamp: Mapped[UUID | None]  # the user's stamp when the login began; None if it ended before migration 0003
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    previous_secret_hash: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    rotated_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime] = mapped_column(index=True)
    # The client that logged in.
    ip_address: Mapped[str | None] = mapped_column(String(45))
    user_agent: Mapped[str | None] = mapped_column(String(256))
