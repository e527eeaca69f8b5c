"""The table of refresh tokens."""

from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import ForeignKey, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, utc_now


class RefreshToken(Base):
    """A family of refresh tokens, which is one login. Only the newest token of a family is stored, and is valid.

    A token consists of its family's id and a secret. A token with another secret was used before, so somebody has a
    copy: the row is deleted, and with it the login.
    """

    __tablename__ = "refresh_tokens"

    family: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    security_stamp: Mapped[UUID | None]  # the user's when the login began; None if it had changed before
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    previous_secret_hash: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    rotated_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime]
