"""Logins and refresh tokens.

The caller opens and commits the session. There is one exception: `_end_reused_login` commits it itself.
"""

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import timedelta
from uuid import UUID, uuid4

import structlog
from sqlalchemy import and_, case, delete, func, literal, or_, select, union_all, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth.client import Client
from app.auth.errors import EmailNotVerified, InvalidRefreshToken, LoginFailed, SessionNotFound
from app.auth.schemas import Credentials, SessionList, SessionResponse, TokenPair
from app.database import FastReader, utc_now
from app.limiter import RateLimiter
from app.security import LEEWAY, AccessToken, Passwords, Tokens
from app.settings import Settings
from app.users.models import Login, User
from app.users.service import find_user_by_email

_ID_BYTES = 16
_SECRET_BYTES = 32
MAX_SESSIONS = 100  # maximum number of logins listed per user
# How long the rows of expired logins are kept at least. If they were deleted at once, a server whose clock is ahead
# would delete valid logins.
KEEP_EXPIRED = timedelta(days=1)
# Maximum number of expired rows that a login deletes, so that logging in stays fast.
MAX_DELETED = 100


async def login(  # noqa: PLR0913  each is needed
    session: AsyncSession,
    credentials: Credentials,
    client: Client,
    *,
    settings: Settings,
    reader: FastReader,
    passwords: Passwords,
    tokens: Tokens,
    limiter: RateLimiter,
) -> TokenPair:
    """Exchange an email address and a password for tokens.

    Raises:
        RateLimited: Too many attempts to log in with this email address. Attempts from all clients are counted
            together. Addresses without an account are also limited.
        LoginFailed: The address is unknown, the password is wrong, or the user is inactive. All three cases take the
            same time.
        EmailNotVerified: The credentials are correct, but the address must be verified first.
    """
    user = await find_user_by_email(reader, credentials.email)
    # If the account exists, count attempts by user id, because the user can change the email address.
    await limiter.enforce("account", str(user.id) if user else credentials.email)
    # Verifying the password takes 0.1 s. The request holds no database connection during this time, because the session
    # has not connected yet.
    matches, new_hash = await passwords.verify(credentials.password, user.password_hash if user else None)
    if user is None:
        raise LoginFailed(reason="unknown address")
    if not matches or not user.is_active:
        raise LoginFailed(reason="inactive user" if matches else "wrong password")
    if settings.require_verified_email and not user.email_verified:
        raise EmailNotVerified
    if new_hash:
        await session.execute(
            update(User)
            .where(User.id == user.id, User.password_hash == user.password_hash)
            .values(password_hash=new_hash, updated_at=User.updated_at)  # the user has changed nothing
        )

    now = utc_now()
    login_id = uuid4()
    secret = tokens.create_refresh_secret(login_id)
    # Check again whether the user may log in. While the password was being verified, another request may have changed
    # the password, deactivated the user or deleted the user. This query also locks the user's row, so that such
    # requests wait until this transaction ends. To avoid deadlocks, lock the user's row before the login rows: deleting
    # a user locks the rows in the same order.
    may_log_in = User.id == user.id, User.is_active, User.security_stamp == user.security_stamp
    if await session.scalar(select(User.id).where(*may_log_in).with_for_update(key_share=True)) is None:
        raise LoginFailed(reason="account changed during the login")
    session.add(
        Login(
            login_id=login_id,
            user_id=user.id,
            security_stamp=user.security_stamp,
            secret_hash=_hash(secret),
            expires_at=now + tokens.refresh_lifetime,
            **client._asdict(),
        )
    )
    # Delete the user's logins that ended when the security stamp changed, and expired logins of any user. Otherwise,
    # the IP addresses of users who never log in again would be stored forever. Skip rows that are locked by other
    # requests, because waiting for the locks could cause a deadlock.
    ids = select(Login.login_id).with_for_update(skip_locked=True)  # no effect on SQLite, which has no row locks
    ended = ids.where(Login.user_id == user.id, Login.security_stamp.is_distinct_from(user.security_stamp)).cte()
    # With ORDER BY, PostgreSQL uses the index on `expires_at`, even if it expects many rows.
    expired = ids.where(Login.expires_at < now - KEEP_EXPIRED).order_by(Login.expires_at).limit(MAX_DELETED).cte()
    either = union_all(select(ended), select(expired))
    await session.execute(delete(Login).where(Login.login_id.in_(either)).execution_options(synchronize_session=False))
    return _issue_pair(tokens, AccessToken(user.id, user.security_stamp, login_id), secret)


async def refresh(session: AsyncSession, tokens: Tokens, token: str) -> TokenPair:
    """Exchange a refresh token for a new pair of tokens.

    After its first use, a refresh token can be reused for a short time, called the overlap. Each reuse returns the same
    new refresh token. The overlap ends early if the new token is used. Without the overlap, a second browser tab or a
    retry after a lost response would log the user out. The new token is not stored, because it can be derived from the
    old one.

    Raises:
        InvalidRefreshToken: The token is unknown or expired, its login session has ended, or the token was already used
            and the overlap is over. Reuse after the overlap also ends the login session.
    """
    login_id, secret = _parse(token)
    now = utc_now()
    used = _hash(secret)
    next_secrets = {_hash(following): following for following in tokens.derive_next_secrets(login_id, secret)}
    is_current = Login.secret_hash == used
    is_repeated = and_(
        # An overlap of 0 must disable reuse. The condition on `rotated_at` below does not ensure this: if a request
        # that started after this one has already rotated the secret, `rotated_at` is later than `now`, and the
        # condition is met even with an overlap of 0.
        literal(bool(tokens.refresh_overlap)),
        Login.previous_secret_hash == used,
        Login.secret_hash.in_(next_secrets),
        Login.rotated_at > now - tokens.refresh_overlap,
    )
    is_owner_unchanged = (
        select(User.id)
        .where(User.id == Login.user_id, User.is_active, User.security_stamp == Login.security_stamp)
        .exists()
    )
    # Use a single statement to avoid a race condition. If two concurrent requests use the same token, the second one
    # waits for the row lock, and then sees that the token has been used.
    row = (
        await session.execute(
            update(Login)
            .where(
                Login.login_id == login_id,
                or_(is_current, is_repeated),
                Login.expires_at > now - timedelta(seconds=LEEWAY),
                is_owner_unchanged,
            )
            .values(
                secret_hash=case((is_current, next(iter(next_secrets))), else_=Login.secret_hash),
                previous_secret_hash=used,
                rotated_at=case((is_current, now), else_=Login.rotated_at),
                expires_at=case((is_current, now + tokens.refresh_lifetime), else_=Login.expires_at),
            )
            .returning(Login.user_id, Login.security_stamp, Login.secret_hash)
            .execution_options(synchronize_session=False)
        )
    ).one_or_none()
    if row is None:
        is_signed = tokens.is_signed(login_id, secret)
        raise InvalidRefreshToken(reason=await _end_reused_login(session, login_id, used, is_signed=is_signed))
    return _issue_pair(tokens, AccessToken(row.user_id, row.security_stamp, login_id), next_secrets[row.secret_hash])


async def _end_reused_login(session: AsyncSession, login_id: UUID, used: bytes, *, is_signed: bool) -> str:
    """End the login session if the rejected token is one of its earlier tokens. A forged token ends no session.

    Return the reason for the rejection, to be logged.
    """
    # The token was issued by this service if its signature is valid or its hash is stored. If the secret key has
    # changed, the signature may no longer be valid, but the previous token's hash is still stored.
    was_issued = or_(literal(is_signed), Login.previous_secret_hash == used)
    reused = delete(Login).where(Login.login_id == login_id, Login.secret_hash != used, was_issued)
    ended = await session.scalar(reused.returning(Login.login_id))
    await session.commit()  # commit now: the caller raises an error, which would roll back the deletion
    return "refresh token used before" if ended else "refresh token unknown, expired or of an ended login"


async def log_out(session: AsyncSession, tokens: Tokens, token: str) -> None:
    """End the login session that a refresh token belongs to. A token that has already been used is also accepted.

    Raises:
        InvalidRefreshToken: The token is malformed.
    """
    login_id, secret = _parse(token)
    structlog.contextvars.bind_contextvars(login_id=login_id.hex)  # for the access log
    # Accept only tokens that this service issued, that is, tokens with a valid signature or a stored hash. If the
    # secret key has changed, signatures may no longer be valid, but the hashes of the current and the previous token
    # are still stored.
    is_stored = literal(_hash(secret)).in_([Login.secret_hash, Login.previous_secret_hash])
    was_issued = or_(literal(tokens.is_signed(login_id, secret)), is_stored)
    await session.execute(delete(Login).where(Login.login_id == login_id, was_issued))


async def list_sessions(session: AsyncSession, user_id: int, *, current: UUID) -> SessionList:
    """Return a user's active login sessions, at most MAX_SESSIONS, most recently used first.

    Args:
        session: The database session.
        user_id: The user whose login sessions are listed.
        current: The id of the login session that the request belongs to.
    """
    last_used_at = func.coalesce(Login.rotated_at, Login.created_at)
    query = (
        select(Login, last_used_at)
        .join(User, User.id == Login.user_id)
        .where(User.id == user_id, Login.security_stamp == User.security_stamp, Login.expires_at > utc_now())
        .order_by(last_used_at.desc())
        .limit(MAX_SESSIONS)
    )
    return SessionList(
        items=[
            SessionResponse(
                id=login.login_id,
                created_at=login.created_at,
                last_used_at=used_at,
                expires_at=login.expires_at,
                ip_address=login.ip_address,
                user_agent=login.user_agent,
                is_current=login.login_id == current,
            )
            for login, used_at in await session.execute(query)
        ]
    )


async def end_session(session: AsyncSession, user_id: int, login_id: UUID) -> None:
    """End one of a user's login sessions.

    Raises:
        SessionNotFound: The user has no such login session.
    """
    by_id = delete(Login).where(Login.login_id == login_id, Login.user_id == user_id)
    if await session.scalar(by_id.returning(Login.login_id)) is None:
        raise SessionNotFound


async def end_sessions(session: AsyncSession, user_id: int, *, keep: UUID | None = None) -> None:
    """End all of a user's login sessions, except the one with the id `keep`, if given."""
    await session.execute(delete(Login).where(Login.user_id == user_id, Login.login_id.is_distinct_from(keep)))


def _issue_pair(tokens: Tokens, access_token: AccessToken, secret: bytes) -> TokenPair:
    structlog.contextvars.bind_contextvars(user_id=access_token.user_id, login_id=access_token.login_id.hex)
    return TokenPair(
        access_token=tokens.issue(access_token),
        refresh_token=urlsafe_b64encode(access_token.login_id.bytes + secret).decode(),
        expires_in=tokens.access_seconds,
    )


def _parse(token: str) -> tuple[UUID, bytes]:
    try:
        data = urlsafe_b64decode(token)
    except ValueError as error:
        raise InvalidRefreshToken(reason="malformed refresh token") from error
    if len(data) != _ID_BYTES + _SECRET_BYTES:
        raise InvalidRefreshToken(reason="malformed refresh token")
    return UUID(bytes=data[:_ID_BYTES]), data[_ID_BYTES:]


def _hash(secret: bytes) -> bytes:
    """Hash the secret of a token. A fast hash is enough: unlike a password, 16 random bytes cannot be guessed."""
    return hashlib.sha256(secret).digest()
