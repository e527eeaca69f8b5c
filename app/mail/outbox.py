"""Add mails to the outbox, in the same transaction as the change that they are about."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from app.mail.message import Content
from app.mail.models import Mail

# Writes the text of a mail, or returns None if there is nothing to send any more. It runs in a transaction.
Writer = Callable[[AsyncSession, Mail], Awaitable[Content | None]]


class Outbox:
    """Adds mails to sessions, and wakes this worker's sender when they are committed.

    Args:
        writers: A function that writes the text, for each kind of mail. Unknown kinds are ignored, so callers need not
            check whether mail is on.
    """

    def __init__(self, writers: Mapping[str, Writer]) -> None:
        self.writers = writers
        self.wake_event = asyncio.Event()

    def sends(self, kind: str) -> bool:
        """Return whether mails of a kind are sent."""
        return kind in self.writers

    def add(self, session: AsyncSession, kind: str, recipient: str, **context: int) -> None:
        """Add a mail to a session. It is sent after the commit.

        Args:
            session: The session of the transaction.
            kind: What the mail is about, such as `password_reset`.
            recipient: The address.
            context: What the text depends on, such as the id of a user. No secrets: it is stored.
        """
        if self.sends(kind):
            session.add(Mail(kind=kind, recipient=recipient, context=context))
            event.listen(session.sync_session, "after_commit", self._wake_sender, once=True)

    def _wake_sender(self, _: object) -> None:
        self.wake_event.set()
