"""The table of the tokens that are sent by email."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base


class AccountToken(Base):
    """A user's newest token for one purpose. Earlier tokens for this purpose are invalid.

    The token itself is not stored. It is derived from `token_id` (see tokens.py).

    A token can be used only once. Setting a password changes the user's security stamp, so the stamp in this row no
    longer matches. Verifying an email address deletes this row.
    """

    __tablename__ = "account_tokens"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    purpose: Mapped[str] = mapped_column(String(20), primary_key=True)
    token_id: Mapped[UUID] = mapped_column(unique=True)  # also the id of the email
    email: Mapped[str] = mapped_column(String(254))  # the recipient of the email
    security_stamp: Mapped[UUID]  # the user's stamp when the token was issued
    requested_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
