"""Login, and refresh tokens that rotate, on sessions that the caller opens and, if nothing fails, commits."""

import hashlib
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from uuid import UUID, uuid4

from sqlalchemy import delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth.errors import InvalidRefreshToken, LoginFailed
from app.auth.models import RefreshToken
from app.auth.schemas import Credentials, TokenPair
from app.database import utc_now
from app.errors import RateLimited
from app.limiter import RateLimiter
from app.reader import Reader
from app.security import Passwords, Tokens
from app.users.models import User
from app.users.service import find_user_by_email

_FAMILY_BYTES = 16
_SECRET_BYTES = 32


async def login(  # noqa: PLR0913  all that a login takes
    credentials: Credentials,
    *,
    reader: Reader,
    session: AsyncSession,
    passwords: Passwords,
    tokens: Tokens,
    limiter: RateLimiter,
) -> TokenPair:
    """Exchanges an email address and a password for tokens.

    Raises:
        RateLimited: too many tries for this account, from wherever, and whether it exists or not.
        LoginFailed: unknown address, wrong password, or inactive user; which of them takes the same time.
    """
    usage = await limiter.hit("account", credentials.email)
    if usage and usage.is_exceeded:
        raise RateLimited(headers=usage.headers())
    user = await find_user_by_email(reader, credentials.email)
    # Hashing takes a tenth of a second. No connection waits for it: the reader's is back, the session has none yet.
    matches, new_hash = await passwords.verify(credentials.password, user.password_hash if user else None)
    if user is None or not matches or not user.is_active:
        raise LoginFailed
    if new_hash:
        await session.execute(
            update(User)
            .where(User.id == user.id, User.password_hash == user.password_hash)
            .values(password_hash=new_hash)
        )

    now = utc_now()
    family, secret = uuid4(), secrets.token_bytes(_SECRET_BYTES)
    # Hashing took its time, in which the password may have been changed, or the user deactivated or deleted. Whoever
    # wants to do so now waits, and this lock comes before those of the tokens, as when a user is deleted.
    still_valid = User.id == user.id, User.is_active, User.credentials_version == user.credentials_version
    if await session.scalar(select(User.id).where(*still_valid).with_for_update(key_share=True)) is None:
        raise LoginFailed
    session.add(
        RefreshToken(
            family=family,
            user_id=user.id,
            credentials_version=user.credentials_version,
            secret_hash=_hash(secret),
            expires_at=now + tokens.refresh_lifetime,
        )
    )
    # Logins that ended without a logout are swept away by the user's next one.
    await session.execute(
        delete(RefreshToken).where(
            RefreshToken.user_id == user.id,
            or_(RefreshToken.expires_at <= now, RefreshToken.credentials_version < user.credentials_version),
        )
    )
    return _pair(tokens, user.id, family, secret)


async def refresh(token: str, *, session: AsyncSession, tokens: Tokens) -> TokenPair:
    """Exchanges a refresh token for a new pair, once.

    Raises:
        InvalidRefreshToken: unknown, expired, ended, or spent before; the family then ends for good.
    """
    family, secret = _parse(token)
    now = utc_now()
    new_secret = secrets.token_bytes(_SECRET_BYTES)
    # One statement decides: of two requests with one token, the second finds another secret in the row.
    user_id = await session.scalar(
        update(RefreshToken)
        .where(
            RefreshToken.family == family,
            RefreshToken.secret_hash == _hash(secret),
            RefreshToken.expires_at > now,
            select(User.id)
            .where(
                User.id == RefreshToken.user_id,
                User.is_active,
                User.credentials_version == RefreshToken.credentials_version,
            )
            .exists(),
        )
        .values(secret_hash=_hash(new_secret), expires_at=now + tokens.refresh_lifetime)
        .returning(RefreshToken.user_id)
        .execution_options(synchronize_session=False)
    )
    if user_id is None:
        await end_family(token, session=session)
        await session.commit()  # here, since the error below rolls back
        raise InvalidRefreshToken
    return _pair(tokens, user_id, family, new_secret)


async def end_family(token: str, *, session: AsyncSession) -> None:
    """Makes this refresh token and all that came before and after it useless.

    Raises:
        InvalidRefreshToken: it never was a token.
    """
    family, _ = _parse(token)
    await session.execute(delete(RefreshToken).where(RefreshToken.family == family))


def _pair(tokens: Tokens, user_id: int, family: UUID, secret: bytes) -> TokenPair:
    return TokenPair(
        access_token=tokens.issue(user_id),
        refresh_token=urlsafe_b64encode(family.bytes + secret).decode(),
        expires_in=int(tokens.access_lifetime.total_seconds()),
    )


def _parse(token: str) -> tuple[UUID, bytes]:
    try:
        data = urlsafe_b64decode(token)
    except ValueError as error:
        raise InvalidRefreshToken from error
    if len(data) != _FAMILY_BYTES + _SECRET_BYTES:
        raise InvalidRefreshToken
    return UUID(bytes=data[:_FAMILY_BYTES]), data[_FAMILY_BYTES:]


def _hash(secret: bytes) -> bytes:
    """A plain hash is enough: the secret is 32 random bytes, which nobody guesses (unlike a password)."""
    return hashlib.sha256(secret).digest()
