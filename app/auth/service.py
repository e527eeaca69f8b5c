"""Login and refresh tokens. The caller opens the session, and commits it."""

import hashlib
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from uuid import UUID, uuid4

from sqlalchemy import delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth.errors import InvalidRefreshToken, LoginFailed
from app.auth.models import RefreshToken
from app.auth.schemas import Credentials, TokenPair
from app.database import FastReader, utc_now
from app.errors import RateLimited
from app.limiter import RateLimiter
from app.security import Passwords, Tokens
from app.users.models import User
from app.users.service import find_user_by_email

_FAMILY_BYTES = 16
_SECRET_BYTES = 32


async def login(  # noqa: PLR0913  all that a login takes
    credentials: Credentials,
    *,
    reader: FastReader,
    session: AsyncSession,
    passwords: Passwords,
    tokens: Tokens,
    limiter: RateLimiter,
) -> TokenPair:
    """Exchange an email address and a password for tokens.

    Raises:
        RateLimited: Too many attempts for this account, from any address, whether or not the account exists.
        LoginFailed: Unknown address, wrong password or inactive user. Each takes the same time.
    """
    usage = await limiter.hit("account", credentials.email)
    if usage.is_exceeded:
        raise RateLimited(headers=usage.headers())
    user = await find_user_by_email(reader, credentials.email)
    # Hashing takes a tenth of a second, during which no connection is held: the session has not connected yet.
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
    # During the hashing the password may have been changed, or the user deactivated or deleted. From here on that waits
    # for this lock. It comes before the locks of the tokens, in the same order as when a user is deleted.
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
    # Logins that have expired or been ended otherwise are deleted at the user's next login.
    await session.execute(
        delete(RefreshToken).where(
            RefreshToken.user_id == user.id,
            or_(RefreshToken.expires_at <= now, RefreshToken.credentials_version < user.credentials_version),
        )
    )
    return _issue_pair(tokens, user.id, family, secret)


async def refresh(token: str, *, session: AsyncSession, tokens: Tokens) -> TokenPair:
    """Exchange a refresh token for a new pair of tokens.

    Raises:
        InvalidRefreshToken: The token is unknown, expired or ended, or it was used before, which ends its login.
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
        await end_login(token, session=session)
        await session.commit()  # because the error below causes a rollback
        raise InvalidRefreshToken
    return _issue_pair(tokens, user_id, family, new_secret)


async def end_login(token: str, *, session: AsyncSession) -> None:
    """End the login that a refresh token belongs to.

    Raises:
        InvalidRefreshToken: The token is malformed.
    """
    family, _ = _parse(token)
    await session.execute(delete(RefreshToken).where(RefreshToken.family == family))


def _issue_pair(tokens: Tokens, user_id: int, family: UUID, secret: bytes) -> TokenPair:
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
    """Hash the secret of a token. Unlike a password, 32 random bytes cannot be guessed, so a fast hash is enough."""
    return hashlib.sha256(secret).digest()
