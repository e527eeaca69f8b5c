"""Write the texts of emails about accounts. Each text is written just before its email is sent."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from string import Template
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, delete, not_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import PREFIX, TITLE
from app.accounts.models import AccountToken
from app.accounts.texts import TEXTS
from app.accounts.tokens import MailTokens, Purpose
from app.database import utc_now
from app.mail.message import Content
from app.mail.models import Mail
from app.mail.outbox import Writer
from app.settings import Settings
from app.users.models import User

# How long the row of an expired token stays in the database. If an email is sent again after a failure, `write_link`
# needs this row to find out whether the token has been used.
KEEP_EXPIRED = timedelta(days=7)

NOTICES = ("password_changed", "email_change_requested", "email_changed")


class Link(NamedTuple):
    """A kind of link that is sent by email, for example a password reset link. Each link contains a token.

    Attributes:
        purpose: The operation that the token allows.
        page: The URL of the page that the link opens.
        url: The URL of the API route that accepts the token.
        lifetime: How long the token is valid.
        recipient_filter: A function that takes a `Mail` and returns the SQL condition that matches its recipient among
            the active users. At most one user matches.
    """

    purpose: Purpose
    page: str
    url: str
    lifetime: timedelta
    recipient_filter: Callable[[Mail], ColumnElement[bool]]


def mail_writers(settings: Settings) -> dict[str, Writer]:
    """Map each kind of email to the function that writes its text."""
    password_page = settings.password_reset_url or f"{settings.public_url}{PREFIX}/account/password-reset"
    email_page = settings.email_verification_url or f"{settings.public_url}{PREFIX}/account/email-verification"
    password_url = f"{settings.public_url}{PREFIX}/auth/password-reset/confirm"
    email_url = f"{settings.public_url}{PREFIX}/auth/email-verification/confirm"
    hours = timedelta(hours=settings.email_verification_hours)
    links = {
        "password_reset": Link(
            "password_reset",
            password_page,
            password_url,
            timedelta(minutes=settings.password_reset_minutes),
            # Do not send this kind of link to invited users who have not set a password yet. They need a new invitation
            # instead, because an invitation's link is valid for days.
            lambda mail: and_(User.email == mail.recipient, User.password_hash != ""),
        ),
        "invitation": Link(
            "password_reset",
            password_page,
            password_url,
            timedelta(days=settings.invitation_days),
            lambda mail: and_(User.email == mail.recipient, User.password_hash == ""),
        ),
        "email_verification": Link(
            "email_verification",
            email_page,
            email_url,
            hours,
            lambda mail: and_(User.email == mail.recipient, not_(User.email_verified)),
        ),
        "email_change": Link(
            "email_verification",
            email_page,
            email_url,
            hours,
            lambda mail: and_(User.id == mail.context["user_id"], User.pending_email == mail.recipient),
        ),
    }
    tokens = MailTokens(settings)
    return {kind: partial(write_link, tokens, link) for kind, link in links.items()} | dict.fromkeys(
        NOTICES, write_notice
    )


async def write_notice(_: AsyncSession, mail: Mail) -> Content:
    """Write an email without a link."""
    return _fill(mail.kind)


async def write_link(tokens: MailTokens, link: Link, session: AsyncSession, mail: Mail) -> Content | None:
    """Write an email with a link.

    Store an `AccountToken` with the recipient, the user's security stamp and the id of the link's token.

    Return None, so that the email is not sent, in these cases:

    - No active user matches `link.recipient_filter`.
    - A newer email for the same purpose has already been written.
    - This email was written before, and its token was used, or the security stamp has changed since.
    """
    user = await session.scalar(
        select(User).where(User.is_active, link.recipient_filter(mail)).with_for_update(key_share=True)
    )
    if user is None:
        return None
    # Lock the row, so that it still exists when it is updated below. Other workers may be deleting expired tokens.
    newest = await session.get(AccountToken, (user.id, link.purpose), with_for_update=True)
    if newest:
        is_used = newest.token_id == mail.id and newest.security_stamp != user.security_stamp
        if is_used or newest.requested_at > mail.created_at:
            return None
    await session.merge(
        AccountToken(
            user_id=user.id,
            purpose=link.purpose,
            token_id=mail.id,
            email=mail.recipient,
            security_stamp=user.security_stamp,
            requested_at=mail.created_at,
            expires_at=utc_now() + link.lifetime,
        )
    )
    await _delete_old_tokens(session)
    token = tokens.issue(link.purpose, mail.id)
    return _fill(
        mail.kind,
        link=f"{link.page}#token={token}",
        token=token,
        url=link.url,
        lifetime=_describe(link.lifetime),
    )


async def _delete_old_tokens(session: AsyncSession) -> None:
    old = select(AccountToken.token_id).where(AccountToken.expires_at < utc_now() - KEEP_EXPIRED)
    # Skip rows that another worker has locked. Waiting for the locks could cause a deadlock.
    unlocked = old.with_for_update(skip_locked=True)
    await session.execute(delete(AccountToken).where(AccountToken.token_id.in_(unlocked)))


def _fill(kind: str, **values: str) -> Content:
    subject, paragraphs = (Template(text).substitute(values, title=TITLE) for text in TEXTS[kind])
    return Content(subject, paragraphs)


def _describe(duration: timedelta) -> str:
    """Format a duration in the largest unit that divides it evenly, for example `2 days`."""
    units = (("day", timedelta(days=1)), ("hour", timedelta(hours=1)), ("minute", timedelta(minutes=1)))
    unit, length = next((unit, length) for unit, length in units if not duration % length)
    return f"{duration // length} {unit}{'s' if duration > length else ''}"
