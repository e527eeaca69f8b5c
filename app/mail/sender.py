"""Send the emails in the outbox, in a background task of each worker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from time import monotonic

import structlog
from email_validator import EmailNotValidError
from sqlalchemy import delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.database import DATABASE_ERRORS, OutageLog, is_outage, utc_now
from app.limiter import RateLimiter
from app.mail.message import Content, build_message
from app.mail.models import Mail
from app.mail.outbox import Outbox
from app.mail.transport import Deferred, MailServerUnavailable, Undeliverable, create_transport
from app.settings import Settings

log = structlog.stdlib.get_logger("app.mail")

# Seconds between polls of the outbox. A poll finds emails that are due for a retry, and emails whose worker was killed
# before it sent them.
POLL_SECONDS = 5.0
# How long an email is reserved for the worker that claimed it. If the worker is killed, another one sends the email
# after this time.
LEASE = timedelta(minutes=5)
# The wait before the first retry, and the maximum wait. The wait doubles with each failure.
FIRST_RETRY, LONGEST_RETRY = timedelta(seconds=10), timedelta(minutes=10)
# The age at which an email is dropped instead of retried.
MAX_AGE = timedelta(days=2)
# Maximum time in seconds before an unavailable mail server is tried again.
LONGEST_PAUSE = 60.0
# Maximum time in seconds that a shutdown waits for the current email to be sent. If sending takes longer, the email may
# be sent twice.
SHUTDOWN_SECONDS = 3.0


class Sender:
    """Sends the emails in the outbox one at a time, and deletes each one after it is sent.

    Each email is sent at least once. It may be sent twice, for example if the service is killed before it deletes the
    email. No transaction is open while an email is being transmitted to the mail server.

    Args:
        settings: The mail server and the sender's address.
        engine: Connects to the database.
        outbox: Wakes the sender after new emails are committed, and provides the functions that write emails.
        limiter: Limits how many emails of one kind a recipient gets. Emails over the limit are not sent.
        outages: Logs database outages.
    """

    def __init__(
        self, settings: Settings, engine: AsyncEngine, outbox: Outbox, limiter: RateLimiter, outages: OutageLog
    ) -> None:
        self._transport = create_transport(settings)
        self._from = settings.mail_from
        self._engine = engine
        self._outbox = outbox
        self._limiter = limiter
        self._outages = outages
        self._failures = 0  # consecutive failures of the mail server
        self._retry_at = 0.0
        self._is_stopping = False

    @property
    def is_available(self) -> bool:
        """Return whether the mail server is available, as far as this worker knows.

        A failure expires after a while, because a worker notices a recovery only when it sends an email. If other
        workers send all remaining emails, this worker would otherwise report the failure forever.
        """
        return self._failures == 0 or monotonic() > self._retry_at + LONGEST_PAUSE

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Send emails while the `async with` block runs. When the block ends, finish sending the current email."""
        if not self._outbox.writers:
            yield
            return
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._is_stopping = True
            self._outbox.wake_event.set()
            await asyncio.wait({task}, timeout=SHUTDOWN_SECONDS)
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        while not self._is_stopping:
            self._outbox.wake_event.clear()
            try:
                await self._send_due_mails()
            except Exception as error:  # a bug must not end the task
                if await self._is_outage(error):
                    self._outages.add(error)
                else:
                    log.exception("the mail sender failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._outbox.wake_event.wait()

    async def _send_due_mails(self) -> None:
        try:
            while not self._is_stopping and monotonic() >= self._retry_at and (mail := await self._claim()):
                await self._send(mail)
        finally:
            await self._transport.close()

    async def _claim(self) -> Mail | None:
        """Claim the email that has been due the longest, so that no other worker sends it."""
        now = utc_now()
        # During a rollout, the outbox may contain emails of a kind that only the other release supports. Leave them to
        # that release. Claim an unsupported email only if it is older than MAX_AGE, in order to drop it.
        is_known_or_expired = or_(Mail.kind.in_(self._outbox.writers), Mail.created_at < now - MAX_AGE)
        due = (
            select(Mail.id)
            .where(Mail.next_attempt_at <= now, is_known_or_expired)
            .order_by(Mail.next_attempt_at)
            .limit(1)
            .with_for_update(skip_locked=True)  # no effect on SQLite, where transactions wait for each other
            .scalar_subquery()
        )
        claim = (
            update(Mail)
            .where(Mail.id == due)
            .values(next_attempt_at=now + LEASE, attempts=Mail.attempts + 1)
            .returning(Mail)
        )
        async with self._begin() as session:
            return await session.scalar(claim)

    async def _send(self, mail: Mail) -> None:
        with structlog.contextvars.bound_contextvars(mail_id=str(mail.id), kind=mail.kind):
            try:
                if not self._outbox.sends(mail.kind):
                    await self._give_up(mail, "unknown kind of mail")
                    return
                if content := await self._write(mail):
                    await self._transport.send(build_message(mail, content, self._from))
                    self._note_available()
                    log.info("mail sent")
                await self._delete(mail)
            except EmailNotValidError:  # not logged, because its message may quote the address
                await self._give_up(mail, "the recipient's address is not valid")
            except Undeliverable as error:
                self._note_available()
                await self._give_up(mail, str(error))
            except Deferred as error:
                self._note_available()
                await self._postpone(mail, str(error))
            except MailServerUnavailable as error:
                self._note_unavailable(str(error))
                await self._postpone(mail, str(error), longest=timedelta(seconds=LONGEST_PAUSE))
            except Exception as error:
                if await self._is_outage(error):
                    raise
                log.exception("mail failed")
                await self._postpone(mail, repr(error))

    async def _write(self, mail: Mail) -> Content | None:
        async with self._begin() as session:
            content = await self._outbox.writers[mail.kind](session, mail)
            # Count emails here, not when they are added: emails that are not sent must not use up a recipient's limit.
            if content and mail.attempts == 1 and await self._is_too_many(mail):
                await session.rollback()  # so that the tokens of earlier emails remain valid
                return None
            return content

    async def _is_too_many(self, mail: Mail) -> bool:
        count = await self._limiter.hit("recipient", f"{mail.kind} {mail.recipient}")
        if count.is_exceeded:
            log.info("mail not sent: too many to one recipient")
        return count.is_exceeded

    async def _postpone(self, mail: Mail, reason: str, *, longest: timedelta = LONGEST_RETRY) -> None:
        if utc_now() - mail.created_at > MAX_AGE:
            await self._give_up(mail, reason)
            return
        wait = min(FIRST_RETRY * 2 ** min(mail.attempts - 1, 10), longest)
        lease = Mail.id == mail.id, Mail.attempts == mail.attempts  # another worker may have claimed it since
        async with self._begin() as session:
            await session.execute(update(Mail).where(*lease).values(next_attempt_at=utc_now() + wait))

    async def _give_up(self, mail: Mail, reason: str) -> None:
        log.warning("mail dropped", reason=reason, attempts=mail.attempts)
        await self._delete(mail)

    async def _delete(self, mail: Mail) -> None:
        async with self._begin() as session:
            await session.execute(delete(Mail).where(Mail.id == mail.id))

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    def _note_available(self) -> None:
        if self._failures:
            log.info("the mail server is available again")
        self._failures = 0

    def _note_unavailable(self, reason: str) -> None:
        if not self._failures:
            log.warning("the mail server is unavailable: mails wait", reason=reason)
        self._retry_at = monotonic() + min(2.0 ** min(self._failures, 10), LONGEST_PAUSE)
        self._failures += 1

    async def _is_outage(self, error: Exception) -> bool:
        is_ongoing = self._outages.is_ongoing
        return isinstance(error, DATABASE_ERRORS) and await is_outage(error, self._engine, is_ongoing=is_ongoing)
