"""Operations on users. The caller opens and commits the session."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from uuid import UUID, uuid4

from pydantic import MISSING
from sqlalchemy import Boolean, ColumnElement, String, and_, bindparam, delete, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import FastReader, is_unique_violation
from app.limiter import RateLimiter
from app.mail.outbox import Outbox
from app.pagination import encode_cursor
from app.schemas import MAX_ID
from app.security import Passwords
from app.users.errors import EmailTaken, LastSuperuser, UserNotFound, WrongPassword
from app.users.models import Login, User, UserRecord
from app.users.schemas import PasswordChange, ProfileUpdate, UserCreate, UserPage, UserResponse

_RECORDS = select(*(getattr(User, field.name) for field in fields(UserRecord)))
_RECORD_BY_LOGIN = _RECORDS.join(Login, Login.user_id == User.id).where(
    User.id == bindparam("user_id"), Login.login_id == bindparam("login_id")
)
_RECORD_BY_EMAIL = _RECORDS.where(User.email == bindparam("email"))

_PAGE_FIELDS = tuple(UserResponse.model_fields)
_PAGE = (
    select(*(getattr(User, name) for name in _PAGE_FIELDS))
    .where(
        User.id < bindparam("after"),
        or_(bindparam("is_active", type_=Boolean).is_(None), User.is_active == bindparam("is_active")),
    )
    .order_by(User.id.desc())
    .limit(bindparam("limit"))
)
# `literal_execute` inserts the pattern into the statement. PostgreSQL then chooses the plan for each search according
# to the estimated number of matches: it uses the search index if there are few, and scans the primary key if there are
# many. With a parameter, PostgreSQL would soon use a generic plan for all patterns. With that plan, finding a rare name
# among a million users takes seconds.
_PATTERN = bindparam("pattern", type_=String, literal_execute=True)
_SEARCH_PAGE = _PAGE.where(or_(User.email.ilike(_PATTERN, escape="/"), User.full_name.ilike(_PATTERN, escape="/")))


async def find_logged_in_user(reader: FastReader, user_id: int, login_id: UUID) -> UserRecord | None:
    """Return the user, or None if the user does not exist or the login has ended."""
    row = await reader.fetch_one(_RECORD_BY_LOGIN, user_id=user_id, login_id=login_id)
    return UserRecord(*row) if row else None


async def find_user_by_email(reader: FastReader, email: str) -> UserRecord | None:
    """Return the user with the given email address, or None if there is no such user.

    The address must be the result of `normalize_email`.
    """
    row = await reader.fetch_one(_RECORD_BY_EMAIL, email=email)
    return UserRecord(*row) if row else None


async def get_user(session: AsyncSession, user_id: int) -> User:
    """Return a user.

    Raises:
        UserNotFound: There is no such user.
    """
    if user := await session.get(User, user_id):
        return user
    raise UserNotFound


async def list_users(
    reader: FastReader, *, limit: int, after: int | None, search: str | None, is_active: bool | None
) -> UserPage:
    """Return a page of users, newest first.

    Args:
        reader: Runs the query.
        limit: Maximum number of users.
        after: The id of the last user on the previous page, or None for the first page.
        search: Part of the email address or the full name, or None for all users.
        is_active: True for active users only, False for inactive users only, None for both.
    """
    parameters = {"after": after or MAX_ID, "limit": limit + 1, "is_active": is_active}
    if search is None:
        rows = await reader.fetch_all(_PAGE, **parameters)
    else:
        escaped = re.sub("([%_/])", r"/\1", search)
        rows = await reader.fetch_all(_SEARCH_PAGE, **parameters, pattern=f"%{escaped}%")
    users = [dict(zip(_PAGE_FIELDS, row, strict=True)) for row in rows[:limit]]
    next_cursor = encode_cursor(users[-1]["id"]) if len(rows) > limit else None
    return UserPage.model_validate({"items": users, "next_cursor": next_cursor})


async def create_user(
    session: AsyncSession, passwords: Passwords, data: UserCreate, *, is_superuser: bool = False
) -> User:
    """Create a user. The address of a new superuser counts as verified, because the operator entered it.

    Raises:
        EmailTaken: Another user already has the address (compared case-insensitively).
    """
    return await add_user(
        session,
        User(
            email=data.email,
            full_name=data.full_name,
            password_hash=await passwords.hash(data.password),
            is_superuser=is_superuser,
            email_verified=is_superuser,
        ),
    )


async def add_user(session: AsyncSession, user: User) -> User:
    """Store a new user.

    Raises:
        EmailTaken: Another user already has this email address.
    """
    session.add(user)
    with raise_email_taken():
        await session.flush()
    return user


async def register(session: AsyncSession, passwords: Passwords, outbox: Outbox, data: UserCreate) -> User:
    """Create a user and send a verification email.

    Raises:
        EmailTaken: Another user already has the address (compared case-insensitively).
    """
    outbox.add(session, "email_verification", data.email)
    return await create_user(session, passwords, data)


async def update_profile(
    session: AsyncSession, outbox: Outbox, limiter: RateLimiter, user: UserRecord, data: ProfileUpdate
) -> User:
    """Update the given fields of the current user.

    If email is enabled, a new address is pending until the user confirms it.

    Raises:
        UserNotFound: The user was deleted. Also raised for an address that must be confirmed, if the security stamp was
            replaced in the meantime, for example by a password reset.
        EmailTaken: Another user already has this email address.
        RateLimited: The user has changed the address too often.
    """
    if data.email in (MISSING, user.email) or not outbox.sends("email_change"):
        return await update_user(session, user.id, data)
    # Also limit the email changes per user. The limit per recipient does not stop a user who enters many different
    # addresses.
    await limiter.enforce("recipient", f"changes by {user.id}")
    outbox.add(session, "email_change", data.email, user_id=user.id)
    outbox.add(session, "email_change_requested", user.email)
    if await session.scalar(select(User.id).where(User.email == data.email)):
        raise EmailTaken
    # A password reset cancels a pending change of the email address, even if the reset happens during this request. The
    # reset changes the security stamp, so update the user only if the stamp is still the same.
    has_same_stamp = User.security_stamp == user.security_stamp
    changes = data.model_dump(exclude={"email"}) | {"pending_email": data.email}
    return await _update(session, user.id, has_same_stamp, **changes)


async def update_user(session: AsyncSession, user_id: int, data: ProfileUpdate) -> User:
    """Update the given fields of a user. A new email address counts as unverified.

    Raises:
        UserNotFound: There is no such user.
        EmailTaken: Another user already has this email address.
        LastSuperuser: No active superuser would remain.
    """
    changes = data.model_dump()
    if changes.get("is_active") is False or changes.get("is_superuser") is False:
        await _require_another_superuser(session, user_id)
    if changes.get("is_active") is False:
        changes |= new_security_stamp()
    if "email" in changes:
        is_same_email = User.email == changes["email"]
        changes |= {"email_verified": and_(User.email_verified, is_same_email), "pending_email": None}
    return await _update(session, user_id, **changes)


async def _update(session: AsyncSession, user_id: int, *conditions: ColumnElement[bool], **changes: object) -> User:
    statement = update(User).where(User.id == user_id, *conditions).returning(User).values(**changes)
    with raise_email_taken():
        user = await session.scalar(statement if changes else select(User).where(User.id == user_id))
    if user is None:
        raise UserNotFound
    return user


async def change_password(  # noqa: PLR0913  each is needed
    session: AsyncSession,
    user: UserRecord,
    data: PasswordChange,
    *,
    passwords: Passwords,
    limiter: RateLimiter,
    outbox: Outbox,
) -> None:
    """Set a new password, log the user out everywhere, and notify the user.

    Raises:
        RateLimited: There were too many password attempts for this account, including attempts to log in.
        WrongPassword: The current password is wrong.
        UserNotFound: The user was deleted, or the security stamp was replaced, for example because the user was
            deactivated.
    """
    await limiter.enforce("account", str(user.id))
    matches, _ = await passwords.verify(data.current_password, user.password_hash)
    if not matches:
        raise WrongPassword
    new_hash = await passwords.hash(data.new_password)  # hashing is slow, so do it before the session connects
    outbox.add(session, "password_changed", user.email)
    changed_id = await session.scalar(
        update(User)
        .where(User.id == user.id, User.security_stamp == user.security_stamp)
        .values(password_hash=new_hash, **new_security_stamp())
        .returning(User.id)
    )
    if changed_id is None:
        raise UserNotFound


async def set_password(session: AsyncSession, passwords: Passwords, email: str, password: str) -> None:
    """Set the password of the user with the given email address, and log the user out everywhere.

    Raises:
        UserNotFound: There is no such user.
    """
    await _change_by_email(session, email, password_hash=await passwords.hash(password), **new_security_stamp())


async def log_out_everywhere(session: AsyncSession, email: str) -> None:
    """End all logins of the user with the given email address.

    Raises:
        UserNotFound: There is no such user.
    """
    await _change_by_email(session, email, **new_security_stamp())


async def _change_by_email(session: AsyncSession, email: str, **values: object) -> None:
    if await session.scalar(update(User).where(User.email == email).values(values).returning(User.id)) is None:
        raise UserNotFound


def new_security_stamp() -> dict[str, object]:
    """Return column values that, once stored, log the user out everywhere.

    They also invalidate the links in emails to the user, and cancel a pending change of the email address.
    """
    return {"security_stamp": uuid4(), "pending_email": None}


async def delete_user(session: AsyncSession, user_id: int) -> None:
    """Delete a user. The database also deletes their logins and email tokens, but not emails in the outbox.

    Raises:
        UserNotFound: There is no such user.
        LastSuperuser: No active superuser would remain.
    """
    await _require_another_superuser(session, user_id)
    if await session.scalar(delete(User).where(User.id == user_id).returning(User.id)) is None:
        raise UserNotFound


async def _require_another_superuser(session: AsyncSession, user_id: int) -> None:
    """Raise LastSuperuser if no active superuser would remain without this user.

    If the user is a superuser, lock the rows of all active superusers until the transaction ends. If two superusers
    remove each other concurrently, the second request waits here, and then raises LastSuperuser.

    If the user is not a superuser, lock only the user's row, so that the user cannot be promoted during the
    transaction.

    SQLite needs no row locks, because it runs only one write transaction at a time.
    """
    by_id = select(User.id).where(User.id == user_id, ~User.is_superuser)
    if await session.scalar(by_id.with_for_update()) is not None:
        return
    superusers = select(User.id).where(User.is_superuser, User.is_active).order_by(User.id).with_for_update()
    if list(await session.scalars(superusers)) == [user_id]:
        raise LastSuperuser


@contextmanager
def raise_email_taken() -> Iterator[None]:
    """Raise EmailTaken if the code in the `with` block violates the unique constraint on `users.email`.

    A check before the write would be subject to a race condition.
    """
    try:
        yield
    except IntegrityError as error:
        if not is_unique_violation(error, "users.email"):
            raise
        raise EmailTaken from error
