"""Password reset, email verification and invitations. The caller opens and commits the session."""

from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import and_, bindparam, delete, not_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.errors import IncorrectPassword, InvalidMailToken
from app.accounts.models import AccountToken
from app.accounts.schemas import EmailVerification, Invitation, PasswordReset
from app.accounts.tokens import MailTokens, Purpose
from app.database import FastReader, utc_now
from app.limiter import RateLimiter
from app.mail.outbox import Outbox
from app.security import Passwords
from app.users.models import User
from app.users.service import add_user, new_security_stamp, raise_email_taken


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """The user that a valid token belongs to, and the address that the token was sent to.

    The token proves that the caller can read emails sent to `address`.
    """

    address: str
    user_id: int
    email: str
    password_hash: str = field(repr=False)
    security_stamp: UUID = field(repr=False)


_VERIFIED_TOKEN = (
    select(AccountToken.email, User.id, User.email, User.password_hash, User.security_stamp)
    .join(User, and_(User.id == AccountToken.user_id, User.security_stamp == AccountToken.security_stamp))
    .where(
        AccountToken.token_id == bindparam("token_id"),
        AccountToken.purpose == bindparam("purpose"),
        AccountToken.expires_at > bindparam("now"),
        User.is_active,
    )
)


async def reset_password(  # noqa: PLR0913  each is needed
    session: AsyncSession,
    data: PasswordReset,
    *,
    reader: FastReader,
    passwords: Passwords,
    tokens: MailTokens,
    outbox: Outbox,
) -> None:
    """Set a new password, log the user out everywhere, mark the address as verified, and notify the user.

    Raises:
        InvalidMailToken: The token is unknown, expired or used, or the account has changed since the token was issued.
    """
    token = await _check(reader, tokens, "password_reset", data.token)
    new_hash = await passwords.hash(data.new_password)  # hashing is slow, so do it before the session connects
    outbox.add(session, "password_changed", token.email)
    # If two requests use the same token at the same time, the second one waits here for the row lock. It then fails,
    # because the first one has changed the security stamp.
    is_unchanged = User.id == token.user_id, User.security_stamp == token.security_stamp, User.email == token.address
    changes = {"password_hash": new_hash, "email_verified": True, **new_security_stamp()}
    if await session.scalar(update(User).where(*is_unchanged).values(**changes).returning(User.id)) is None:
        raise InvalidMailToken(reason="used, or the account has changed")


async def verify_email(  # noqa: PLR0913  each is needed
    session: AsyncSession,
    data: EmailVerification,
    *,
    reader: FastReader,
    passwords: Passwords,
    tokens: MailTokens,
    outbox: Outbox,
    limiter: RateLimiter,
) -> None:
    """Mark an email address as verified. If it replaces another address, send a notice to the old address.

    The password is required because anyone can enter someone else's address when they sign up or change their own. The
    password proves that the owner of the address also owns the account.

    Raises:
        InvalidMailToken: The token is unknown, expired or used, or the account has changed since the token was issued.
        RateLimited: There were too many password attempts for this account, including attempts to log in.
        IncorrectPassword: The password is wrong. The token remains valid.
        EmailTaken: Another user has taken the address.
    """
    token = await _check(reader, tokens, "email_verification", data.token)
    await limiter.enforce("account", str(token.user_id))
    matches, _ = await passwords.verify(data.password, token.password_hash)
    if not matches:
        raise IncorrectPassword
    if token.address != token.email:
        outbox.add(session, "email_changed", token.email)
    is_expected = or_(User.pending_email == token.address, and_(User.email == token.address, not_(User.email_verified)))
    with raise_email_taken():
        user_id = await session.scalar(
            update(User)
            .where(User.id == token.user_id, User.security_stamp == token.security_stamp, is_expected)
            .values(email=token.address, email_verified=True, pending_email=None)
            .returning(User.id)
        )
    if user_id is None:
        raise InvalidMailToken(reason="used, or the account has changed")
    # Delete the token. Otherwise, it could be used again if the address is changed and later changed back.
    used_token = AccountToken.user_id == user_id, AccountToken.purpose == "email_verification"
    await session.execute(delete(AccountToken).where(*used_token))


async def invite(session: AsyncSession, outbox: Outbox, data: Invitation) -> User:
    """Create a user without a password, and send them a link to set one.

    Raises:
        EmailTaken: Another user already has this email address.
    """
    outbox.add(session, "invitation", data.email)
    return await add_user(session, User(email=data.email, full_name=data.full_name, password_hash=""))


async def _check(reader: FastReader, tokens: MailTokens, purpose: Purpose, token: str) -> VerifiedToken:
    token_id = tokens.verify(purpose, token)
    row = await reader.fetch_one(_VERIFIED_TOKEN, token_id=token_id, purpose=purpose, now=utc_now())
    if row is None:
        raise InvalidMailToken(reason="expired or used, or the account has changed")
    return VerifiedToken(*row)
