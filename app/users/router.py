"""The routes of the users feature: the current user, registration, administration."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response, status

from app.dependencies import (
    FastReaderDep,
    LimiterDep,
    OutboxDep,
    PasswordsDep,
    ReadSession,
    SettingsDep,
    WriteSession,
)
from app.errors import AuthenticationFailed, PermissionDenied, responses
from app.limiter import rate_limit
from app.pagination import Cursor, Limit, next_page_link, url_path
from app.schemas import Id
from app.users import service
from app.users.dependencies import CurrentUser, get_current_superuser
from app.users.errors import EmailTaken, LastSuperuser, RegistrationClosed, UserNotFound, WrongPassword
from app.users.models import User, UserRecord
from app.users.schemas import PasswordChange, ProfileUpdate, Search, UserCreate, UserPage, UserResponse, UserUpdate

router = APIRouter(prefix="/users", tags=["users"])

# FastAPI matches requests against the routes in this order. The `/me` routes come first, because most requests are for
# them, and because `/{user_id}` also matches `/me`.


@router.get(
    "/me",
    response_model=UserResponse,
    response_description="The current user",
    summary="Get the current user",
)
async def read_me(user: CurrentUser) -> UserRecord:
    """Return the user that the access token belongs to."""
    return user


@router.patch(
    "/me",
    response_model=UserResponse,
    responses=responses(EmailTaken),
    response_description="The updated user",
    summary="Update the current user",
)
# This route shares its rate limit with registration, because it also reveals whether an address is taken. Requests that
# change only the name also count, because requests are counted before their bodies are read.
@rate_limit("register")
async def update_me(
    user: CurrentUser, session: WriteSession, outbox: OutboxDep, limiter: LimiterDep, data: ProfileUpdate
) -> User:
    """Update the email address, the full name, or both.

    A new email address is stored as `pending_email`. It replaces `email` once the user confirms it using the link sent
    to the new address. If the service does not send email, the new address replaces `email` immediately.
    """
    with respond_401_if_user_is_gone():
        return await service.update_profile(session, outbox, limiter, user, data)


@router.put(
    "/me/password",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(WrongPassword),
    response_description="The password is changed",
    summary="Change the current user's password",
)
async def change_my_password(  # noqa: PLR0913  each is needed
    *,
    user: CurrentUser,
    session: WriteSession,
    passwords: PasswordsDep,
    limiter: LimiterDep,
    outbox: OutboxDep,
    data: PasswordChange,
) -> None:
    """Set a new password, and log the user out everywhere.

    All of the user's access and refresh tokens stop working immediately.
    """
    with respond_401_if_user_is_gone():
        await service.change_password(session, user, data, passwords=passwords, limiter=limiter, outbox=outbox)


@router.delete(
    "/me",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(LastSuperuser),
    response_description="The user is deleted",
    summary="Delete the current user",
)
async def delete_me(user: CurrentUser, session: WriteSession) -> None:
    """Delete the current user and their sessions. Their tokens, and links in emails, stop working immediately."""
    with respond_401_if_user_is_gone():
        await service.delete_user(session, user.id)


@contextmanager
def respond_401_if_user_is_gone() -> Iterator[None]:
    """Respond with 401 instead of 404 if an operation on the current user raises UserNotFound.

    This happens if the user was deleted, or the user's security stamp was replaced, after the token was verified.
    """
    try:
        yield
    except UserNotFound as error:
        raise AuthenticationFailed from error


@router.post(
    "/",
    status_code=status.HTTP_201_CREATED,
    response_model=UserResponse,
    responses=responses(EmailTaken, RegistrationClosed)
    | {201: {"headers": {"Location": {"schema": {"type": "string"}}}}},
    response_description="The created user",
    summary="Create a new user",
)
@rate_limit("register")
async def create_user(  # noqa: PLR0913  each is needed
    *,
    settings: SettingsDep,
    session: WriteSession,
    passwords: PasswordsDep,
    outbox: OutboxDep,
    data: UserCreate,
    request: Request,
    response: Response,
) -> User:
    """Create a user account with an email address, a password and a full name.

    The email address must be unique, regardless of case. If the service sends email, the user receives a link to verify
    the address. No response contains the password.
    """
    if settings.registration == "closed":
        raise RegistrationClosed
    user = await service.register(session, passwords, outbox, data)
    response.headers["Location"] = f"{url_path(request)}{user.id}"
    return user


@router.get(
    "/",
    dependencies=[Depends(get_current_superuser)],
    responses=responses(PermissionDenied)
    | {200: {"headers": {"Link": {"description": 'The next page, `rel="next"`', "schema": {"type": "string"}}}}},
    response_description="One page of users",
    summary="List users",
)
async def list_users(  # noqa: PLR0913  one for each query parameter
    *,
    reader: FastReaderDep,
    request: Request,
    response: Response,
    limit: Limit = 50,
    cursor: Cursor = None,
    q: Annotated[Search | None, Query(description="Part of the email address or the name, ignoring case")] = None,
    is_active: Annotated[bool | None, Query(description="Only active users, or only inactive ones")] = None,
) -> UserPage:
    """List users, newest first. Only superusers can call this endpoint.

    If there is a next page, `next_cursor` and the `Link` header point to it.
    """
    page = await service.list_users(reader, limit=limit, after=cursor, search=q, is_active=is_active)
    if page.next_cursor:
        response.headers["Link"] = next_page_link(request, page.next_cursor)
    return page


@router.get(
    "/{user_id}",
    response_model=UserResponse,
    responses=responses(PermissionDenied, UserNotFound),
    response_description="The user",
    summary="Get a user",
)
async def read_user(user_id: Id, caller: CurrentUser, session: ReadSession) -> User | UserRecord:
    """Return a user. Superusers can read any account, other users only their own."""
    if user_id == caller.id:
        return caller
    if not caller.is_superuser:
        raise PermissionDenied
    return await service.get_user(session, user_id)


@router.patch(
    "/{user_id}",
    dependencies=[Depends(get_current_superuser)],
    response_model=UserResponse,
    responses=responses(EmailTaken, PermissionDenied, UserNotFound, LastSuperuser),
    response_description="The updated user",
    summary="Update a user",
)
async def update_user(user_id: Id, session: WriteSession, data: UserUpdate) -> User:
    """Update a user's email address, full name, active status or superuser status.

    Only superusers can call this endpoint. If a user is deactivated, their tokens stop working immediately.
    """
    return await service.update_user(session, user_id, data)


@router.delete(
    "/{user_id}",
    dependencies=[Depends(get_current_superuser)],
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(PermissionDenied, UserNotFound, LastSuperuser),
    response_description="The user is deleted",
    summary="Delete a user",
)
async def delete_user(user_id: Id, session: WriteSession) -> None:
    """Delete a user and their sessions. Only superusers can call this endpoint.

    The user's tokens, and links in emails, stop working immediately.
    """
    await service.delete_user(session, user_id)
