"""The current user, as types for the signatures of routes."""

from typing import Annotated

import structlog
from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app import PREFIX
from app.dependencies import FastReaderDep, TokensDep
from app.errors import AuthenticationFailed, PermissionDenied
from app.security import InvalidAccessToken
from app.users.models import UserRecord
from app.users.service import find_user

_bearer = HTTPBearer(
    scheme_name="BearerAuth",
    bearerFormat="JWT",
    description=f"The `access_token` from `POST {PREFIX}/auth/login`.",
    auto_error=False,  # the errors below have the API's format
)


async def get_current_user(
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    tokens: TokensDep,
    reader: FastReaderDep,
) -> UserRecord:
    """Return the user that the access token in the Authorization header belongs to.

    Raises:
        AuthenticationFailed: There is no valid token, or no such active user.
    """
    if credentials is None:
        raise AuthenticationFailed(reason="no token")
    try:
        token = tokens.verify(credentials.credentials)
    except InvalidAccessToken as error:
        raise AuthenticationFailed(reason=str(error)) from error
    structlog.contextvars.bind_contextvars(user_id=token.user_id, login_id=token.login_id.hex)  # for the access log
    user = await find_user(reader, token.user_id)
    if user is None:
        raise AuthenticationFailed(reason="unknown user")
    if not user.is_active:
        raise AuthenticationFailed(reason="inactive user")
    if user.security_stamp != token.security_stamp:
        raise AuthenticationFailed(reason="login ended")
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
