"""The users' routes: registration, one's own account, administration."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Query, Request, Response, status
from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import to_json

from app.database import ReaderDep, WriteSession
from app.errors import (
    AuthenticationFailed,
    InternalError,
    InvalidRequest,
    PayloadTooLarge,
    PermissionDenied,
    RateLimited,
    ServiceUnavailable,
    UnknownHost,
    UnsupportedMediaType,
    responses,
)
from app.state import PasswordsDep
from app.users import service
from app.users.dependencies import CurrentSuperuser, CurrentUser
from app.users.errors import EmailTaken, LastSuperuser, UserNotFound, WrongPassword
from app.users.models import User, UserRow
from app.users.schemas import PasswordChange, ProfileUpdate, Search, UserCreate, UserPage, UserResponse, UserUpdate

router = APIRouter(
    prefix="/users",
    tags=["users"],
    responses=responses(UnknownHost, PayloadTooLarge, RateLimited, InternalError, ServiceUnavailable),
)

UserId = Annotated[int, Path(ge=1, le=service.MAX_ID, description="The user's id", examples=[1])]
_BODY_ERRORS = (UnsupportedMediaType, InvalidRequest)
Cursor = Annotated[int, BeforeValidator(service.decode_cursor), WithJsonSchema({"type": "string", "maxLength": 32})]


@router.post(
    "/",
    status_code=status.HTTP_201_CREATED,
    response_model=UserResponse,
    responses=responses(EmailTaken, *_BODY_ERRORS) | {201: {"headers": {"Location": {"schema": {"type": "string"}}}}},
    response_description="The user who was created",
    summary="Create a new user",
)
async def create_user(
    *, session: WriteSession, passwords: PasswordsDep, data: UserCreate, request: Request, response: Response
) -> User:
    """Creates a user account from an email address, a password and a full name.

    The address must be unique, regardless of case. The password is never returned in a response.
    """
    user = await service.create_user(session, passwords, data)
    response.headers["Location"] = f"{request.scope['root_path']}/users/{user.id}"
    return user


@router.get(
    "/me",
    response_model=UserResponse,
    responses=responses(AuthenticationFailed),
    response_description="The caller",
    summary="Read yourself",
)
async def read_me(user: CurrentUser) -> UserRow:
    """Returns the user to whom the access token belongs."""
    return user


@router.patch(
    "/me",
    response_model=UserResponse,
    responses=responses(EmailTaken, AuthenticationFailed, *_BODY_ERRORS),
    response_description="The caller, changed",
    summary="Change yourself",
)
async def update_me(user: CurrentUser, session: WriteSession, data: ProfileUpdate) -> User:
    """Changes your email address, your full name, or both."""
    with _still_there():
        return await service.update_user(session, user.id, data)


@router.put(
    "/me/password",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(WrongPassword, AuthenticationFailed, *_BODY_ERRORS),
    response_description="The password is changed",
    summary="Change your password",
)
async def change_my_password(
    user: CurrentUser, session: WriteSession, passwords: PasswordsDep, data: PasswordChange
) -> None:
    """Sets a new password, given the current one.

    Every refresh token of yours stops working; access tokens run on until they expire.
    """
    await service.change_password(session, passwords, user, data)


@router.delete(
    "/me",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(AuthenticationFailed, LastSuperuser),
    response_description="The caller is deleted",
    summary="Delete yourself",
)
async def delete_me(user: CurrentUser, session: WriteSession) -> None:
    """Deletes your account and everything that belongs to it. Your tokens stop working at once."""
    with _still_there():
        await service.delete_user(session, user.id)


@contextmanager
def _still_there() -> Iterator[None]:
    """A caller who was deleted between the look at the token and the change is nobody, like any other without one."""
    try:
        yield
    except UserNotFound as error:
        raise AuthenticationFailed from error


@router.get(
    "/",
    response_model=UserPage,
    responses=responses(AuthenticationFailed, PermissionDenied, InvalidRequest)
    | {200: {"headers": {"Link": {"description": 'The next page, `rel="next"`', "schema": {"type": "string"}}}}},
    response_description="One page of users",
    summary="List users",
)
async def list_users(  # noqa: PLR0913  one for each of the query's
    *,
    _: CurrentSuperuser,
    reader: ReaderDep,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100, description="Users on a page")] = 50,
    cursor: Annotated[Cursor | None, Query(description="`next_cursor` of the page before")] = None,
    q: Annotated[Search | None, Query(description="Part of the email address or the name, in any case")] = None,
    is_active: Annotated[bool | None, Query(description="Only active users, or only inactive ones")] = None,
) -> Response:
    """Lists users, newest first. For superusers. While there are more, `next_cursor` and the `Link` header lead on."""
    page = await service.list_users(reader, limit=limit, before=cursor, search=q, is_active=is_active)
    headers = {}
    if page.next_cursor:
        query = urlencode({**request.query_params, "cursor": page.next_cursor})
        headers["Link"] = f'<{request.scope["root_path"]}/users/?{query}>; rel="next"'
    # The rows are of the database's types, column by column: to validate them would take a third of the request's time.
    return Response(to_json(page._asdict()), media_type="application/json", headers=headers)


@router.get(
    "/{user_id}",
    response_model=UserResponse,
    responses=responses(AuthenticationFailed, PermissionDenied, UserNotFound, InvalidRequest),
    response_description="The user",
    summary="Read a user",
)
async def read_user(user_id: UserId, caller: CurrentUser, reader: ReaderDep) -> UserRow:
    """Returns a user. Superusers may read everybody, others themselves."""
    if user_id == caller.id:
        return caller
    if not caller.is_superuser:
        raise PermissionDenied
    return await service.get_user(reader, user_id)


@router.patch(
    "/{user_id}",
    response_model=UserResponse,
    responses=responses(EmailTaken, AuthenticationFailed, PermissionDenied, UserNotFound, LastSuperuser, *_BODY_ERRORS),
    response_description="The user, changed",
    summary="Change a user",
)
async def update_user(user_id: UserId, _: CurrentSuperuser, session: WriteSession, data: UserUpdate) -> User:
    """Changes a user's address, name, or whether they are active or a superuser.

    For superusers. Deactivation stops the user's tokens at once.
    """
    return await service.update_user(session, user_id, data)


@router.delete(
    "/{user_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(AuthenticationFailed, PermissionDenied, UserNotFound, LastSuperuser, InvalidRequest),
    response_description="The user is deleted",
    summary="Delete a user",
)
async def delete_user(user_id: UserId, _: CurrentSuperuser, session: WriteSession) -> None:
    """Deletes a user and everything that belongs to them. For superusers."""
    await service.delete_user(session, user_id)
