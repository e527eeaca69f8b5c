"""What can be done with users: reads by a reader, changes on a session that the caller opens and commits."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import String, bindparam, delete, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import is_unique_violation
from app.reader import Query, Reader
from app.security import Passwords
from app.users.errors import EmailTaken, LastSuperuser, UserNotFound, WrongPassword
from app.users.models import User, UserRow
from app.users.schemas import PasswordChange, ProfileUpdate, UserCreate, UserResponse

MAX_ID = 2**63 - 1  # PostgreSQL's bigint


class Page(NamedTuple):
    """A page of users, each as `UserResponse` has them, and the cursor of the next one."""

    items: list[dict[str, Any]]
    next_cursor: str | None


async def create_user(
    session: AsyncSession, passwords: Passwords, data: UserCreate, *, is_superuser: bool = False
) -> User:
    """Registers a user.

    Raises:
        EmailTaken: somebody has that address, in whatever case.
    """
    user = User(
        email=data.email,
        full_name=data.full_name,
        password_hash=await passwords.hash(data.password),
        is_superuser=is_superuser,
    )
    session.add(user)
    with _unique_email():
        await session.flush()
    return user


_USERS = select(*(getattr(User, name) for name in UserRow._fields))
_BY_ID = _USERS.where(User.id == bindparam("user_id"))
_BY_EMAIL = _USERS.where(User.email == bindparam("email"))


async def find_user(reader: Reader, user_id: int) -> UserRow | None:
    """Finds a user by id."""
    row = await reader.first(_BY_ID, user_id=user_id)
    return UserRow._make(row) if row else None


async def find_user_by_email(reader: Reader, email: str) -> UserRow | None:
    """Finds a user by address, which is given in lower case."""
    row = await reader.first(_BY_EMAIL, email=email)
    return UserRow._make(row) if row else None


async def get_user(reader: Reader, user_id: int) -> UserRow:
    """Gives a user by id.

    Raises:
        UserNotFound: there is none.
    """
    if user := await find_user(reader, user_id):
        return user
    raise UserNotFound


_PAGE_FIELDS = tuple(UserResponse.model_fields)  # Pydantic takes half a microsecond each time that it is asked for them


async def list_users(
    reader: Reader, *, limit: int, before: int | None, search: str | None, is_active: bool | None
) -> Page:
    """Lists users, newest first, beginning below the id `before`.

    A page is found through the primary key, however deep it lies.
    """
    parameters: dict[str, object] = {"before": before or MAX_ID, "limit": limit + 1}
    if search is not None:
        parameters["pattern"] = f"%{_escape(search)}%"
    if is_active is not None:
        parameters["is_active"] = is_active
    rows = await reader.all(_page(is_search=search is not None, by_activity=is_active is not None), **parameters)
    users = [dict(zip(_PAGE_FIELDS, row, strict=True)) for row in rows[:limit]]
    return Page(users, encode_cursor(users[-1]["id"]) if len(rows) > limit else None)


@cache
def _page(*, is_search: bool, by_activity: bool) -> Query:
    users = select(*(getattr(User, name) for name in _PAGE_FIELDS))
    query = users.where(User.id < bindparam("before")).order_by(User.id.desc()).limit(bindparam("limit"))
    if is_search:
        # PostgreSQL is to see the pattern when it plans, and chooses by how many users will fit: for a few the index
        # for searching, for many the primary key. For a parameter it would soon have one plan for all, which takes
        # seconds to find a rare name among a million users.
        pattern = bindparam("pattern", type_=String, literal_execute=True)
        query = query.where(or_(User.email.ilike(pattern, escape="/"), User.full_name.ilike(pattern, escape="/")))
    if by_activity:
        query = query.where(User.is_active == bindparam("is_active"))
    return query


def _escape(text: str) -> str:
    """What a LIKE pattern with `/` as its escape character finds as it is."""
    return re.sub("([%_/])", r"/\1", text)


def encode_cursor(user_id: int) -> str:
    """Makes the opaque cursor of the page that begins after this user."""
    return urlsafe_b64encode(str(user_id).encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> int:
    """Returns the user id in a cursor.

    Raises:
        ValueError: it is not one of ours.
    """
    try:
        user_id = int(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        user_id = 0
    if not 0 < user_id <= MAX_ID or encode_cursor(user_id) != cursor:
        raise ValueError("Not a cursor that a page gave")
    return user_id


async def update_user(session: AsyncSession, user_id: int, data: ProfileUpdate) -> User:
    """Changes what is given.

    Raises:
        UserNotFound: there is none.
        EmailTaken: somebody else has that address.
        LastSuperuser: no active superuser would be left.
    """
    changes = data.model_dump()
    if changes.get("is_active") is False or changes.get("is_superuser") is False:
        await _require_another_superuser(session, user_id)
    if changes.get("is_active") is False:
        changes["credentials_version"] = User.credentials_version + 1
    change = update(User).where(User.id == user_id).returning(User).values(**changes)
    with _unique_email():
        user = await session.scalar(change if changes else select(User).where(User.id == user_id))
    if user is None:
        raise UserNotFound
    return user


async def change_password(session: AsyncSession, passwords: Passwords, user: UserRow, data: PasswordChange) -> None:
    """Sets a new password and ends every login.

    Raises:
        WrongPassword: the current one is another, or was changed meanwhile.
    """
    matches, _ = await passwords.verify(data.current_password, user.password_hash)
    if not matches:
        raise WrongPassword
    changed = await session.scalar(
        update(User)
        .where(User.id == user.id, User.password_hash == user.password_hash)
        .values(
            password_hash=await passwords.hash(data.new_password),
            credentials_version=User.credentials_version + 1,
        )
        .returning(User.id)
    )
    if changed is None:
        raise WrongPassword


async def delete_user(session: AsyncSession, user_id: int) -> None:
    """Deletes a user and all that belongs to them.

    Raises:
        UserNotFound: there is none.
        LastSuperuser: no active superuser would be left.
    """
    await _require_another_superuser(session, user_id)
    if await session.scalar(delete(User).where(User.id == user_id).returning(User.id)) is None:
        raise UserNotFound


async def _require_another_superuser(session: AsyncSession, user_id: int) -> None:
    """Makes sure that an active superuser is left when this user is gone.

    The rows are locked until the transaction ends: of two superusers who remove each other, the second waits here,
    and then sees that they are the last. On SQLite the transaction itself is such a lock.
    """
    superusers = select(User.id).where(User.is_superuser, User.is_active).order_by(User.id).with_for_update()
    if list(await session.scalars(superusers)) == [user_id]:
        raise LastSuperuser


@contextmanager
def _unique_email() -> Iterator[None]:
    """Lets the constraint decide: of two requests at once, a check beforehand would pass both."""
    try:
        yield
    except IntegrityError as error:
        if not is_unique_violation(error, "users.email"):
            raise
        raise EmailTaken from error
