"""The current user, as types for the signatures of routes."""

from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.dependencies import AppRequest
from app.errors import AuthenticationFailed, PermissionDenied
from app.security import InvalidTokenError
from app.users.models import UserRecord
from app.users.service import find_user

_bearer = HTTPBearer(
    scheme_name="BearerAuth",
    bearerFormat="JWT",
    description="The `access_token` from `POST /auth/login`.",
    auto_error=False,  # the errors below have the API's format
)


async def get_current_user(
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)], request: AppRequest
) -> UserRecord:
    """Return the user that the access token in the Authorization header belongs to.

    Raises:
        AuthenticationFailed: There is no valid token, or no such active user.
    """
    if credentials is None:
        raise AuthenticationFailed
    try:
        user_id = request.state["tokens"].verify(credentials.credentials)
    except InvalidTokenError as error:
        raise AuthenticationFailed from error
    user = await find_user(request.state["fast_reader"], user_id)
    if user is None or not user.is_active:
        raise AuthenticationFailed
    return user


CurrentUser = Annotated[UserRecord, Depends(get_current_user)]


async def get_current_superuser(user: CurrentUser) -> UserRecord:
    """Return the current user if it is a superuser.

    Raises:
        PermissionDenied: It is not.
    """
    if not user.is_superuser:
        raise PermissionDenied
    return user


CurrentSuperuser = Annotated[UserRecord, Depends(get_current_superuser)]
