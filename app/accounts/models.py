"""The table of tokens in mails."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base


class AccountToken(Base):
    """The newest token of a user for a purpose. An earlier one is not valid.

    The token itself is not stored: it is derived from `token_id`, see tokens.py. It works once, because its use changes
    what it is bound to: the security stamp, or that the address is not verified.
    """

    __tablename__ = "account_tokens"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    purpose: Mapped[str] = mapped_column(String(20), primary_key=True)
    token_id: Mapped[UUID] = mapped_column(unique=True)  # the id of the mail
    email: Mapped[str] = mapped_column(String(254))  # where the mail was sent
    security_stamp: Mapped[UUID]  # the user's
    requested_at: Mapped[datetime]
    expires_at: Mapped[datetime]
