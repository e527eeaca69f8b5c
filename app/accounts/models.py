"""The table of the tokens that are sent by email."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base


class AccountToken(Base):
    """The newest token of a user for a purpose. Earlier tokens are invalid.

    The token itself is not stored: it is derived from `token_id` (see tokens.py). It works only once, because using it
    changes what it depends on: the user's security stamp, or whether the address is verified.
    """

    __tablename__ = "account_tokens"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    purpose: Mapped[str] = mapped_column(String(20), primary_key=True)
    token_id: Mapped[UUID] = mapped_column(unique=True)  # the id of the email
    email: Mapped[str] = mapped_column(String(254))  # the recipient of the email
    security_stamp: Mapped[UUID]  # the user's stamp when the token was issued
    requested_at: Mapped[datetime]
    expires_at: Mapped[datetime]
