"""The table of emails to send."""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import JSON, String
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, utc_now


class Mail(Base):
    """An email that has not been sent yet. Its row is deleted when the email is sent or dropped.

    The row contains the kind of email, but not its text or any secrets. The text is written just before the email is
    sent.
    """

    __tablename__ = "mails"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    kind: Mapped[str] = mapped_column(String(50))
    recipient: Mapped[str] = mapped_column(String(254))
    context: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    # This column also serves as a lease. Before a worker sends the email, it sets the column to a later time, so that
    # no other worker sends the same email.
    next_attempt_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)
    attempts: Mapped[int] = mapped_column(default=0)
