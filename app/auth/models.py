"""The table of refresh tokens."""

from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import ForeignKey, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, utc_now


class RefreshToken(Base):
    """A family of refresh tokens, which is one login: of all its tokens only the newest, the live one, is kept.

    A token carries its family's id and a secret. One whose secret is not the live one was spent before, so somebody
    has a copy; the row is then deleted, and with it the family.
    """

    __tablename__ = "refresh_tokens"

    family: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    credentials_version: Mapped[int]
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime]
