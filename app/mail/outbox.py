"""Add emails to the outbox, in the same transaction as the change that causes them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from app.mail.message import Content
from app.mail.models import Mail

# A function that writes an email's subject and text, inside a transaction. It returns None if the email is no longer
# needed.
Writer = Callable[[AsyncSession, Mail], Awaitable[Content | None]]


class Outbox:
    """Adds emails to a database session, and wakes this worker's sender once the session is committed.

    Args:
        writers: Maps each kind of email to the function that writes it. If email is disabled, the mapping is empty.
            Emails without a writer are ignored, so callers need not check whether email is enabled.
    """

    def __init__(self, writers: Mapping[str, Writer]) -> None:
        self.writers = writers
        self.wake_event = asyncio.Event()

    def sends(self, kind: str) -> bool:
        """Return whether emails of this kind can be sent, that is, whether `writers` contains a function for them."""
        return kind in self.writers

    def add(self, session: AsyncSession, kind: str, recipient: str, **context: int) -> None:
        """Add an email to a session. The email is sent after the commit.

        Args:
            session: The session of the transaction that causes the email. If it is rolled back, the email is not sent.
            kind: The kind of email, for example `password_reset`.
            recipient: The recipient's address.
            context: Values that the function in `writers` needs, for example a user's id. They are stored in the
                database, so they must not be secret.
        """
        if self.sends(kind):
            session.add(Mail(kind=kind, recipient=recipient, context=context))
            event.listen(session.sync_session, "after_commit", self._wake_sender, once=True)

    def _wake_sender(self, _: object) -> None:
        self.wake_event.set()
