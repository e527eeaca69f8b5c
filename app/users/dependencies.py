"""Who is calling, as types: a signature with `CurrentUser` in it is a route for users only."""

from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.errors import AuthenticationFailed, PermissionDenied
from app.security import InvalidTokenError, Passwords
from app.state import AppRequest
from app.users.models import UserRow
from app.users.service import find_user

_bearer = HTTPBearer(
    scheme_name="BearerAuth",
    bearerFormat="JWT",
    description="The `access_token` that `POST /auth/login` answers with.",
    auto_error=False,  # our own error answers, in the one format
)


async def _passwords(request: AppRequest) -> Passwords:
    return request.state["passwords"]


PasswordsDep = Annotated[Passwords, Depends(_passwords)]


async def _current_user(
    request: AppRequest, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> UserRow:
    if credentials is None:
        raise AuthenticationFailed
    try:
        user_id = request.state["tokens"].read(credentials.credentials)
    except InvalidTokenError as error:
        raise AuthenticationFailed from error
    # The reader gives its connection back at once. One that was kept as long as the request lasts would be held while a
    # write waits for its own: with as many requests as connections, all would wait for each other.
    user = await find_user(request.state["reader"], user_id)
    if user is None or not user.is_active:
        raise AuthenticationFailed
    return user


CurrentUser = Annotated[UserRow, Depends(_current_user)]


async def _current_superuser(user: CurrentUser) -> UserRow:
    if not user.is_superuser:
        raise PermissionDenied
    return user


CurrentSuperuser = Annotated[UserRow, Depends(_current_superuser)]
