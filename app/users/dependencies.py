"""Dependencies for the current user."""

from typing import Annotated

import structlog
from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app import PREFIX
from app.dependencies import AppRequest
from app.errors import AuthenticationFailed, PermissionDenied
from app.security import AccessToken, InvalidAccessToken
from app.users.models import UserRecord
from app.users.service import find_logged_in_user

_bearer = HTTPBearer(
    scheme_name="BearerAuth",
    bearerFormat="JWT",
    description=f"The `access_token` from `POST {PREFIX}/auth/login`.",
    auto_error=False,  # the functions below raise errors in the API's format
)


_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


# To save time, the functions below read `request.state` instead of depending on `get_tokens` and `get_fast_reader`.
# Most requests use them, and resolving a dependency takes about 10 µs.
async def get_access_token(credentials: _Credentials, request: AppRequest) -> AccessToken:
    """Verify the access token in the Authorization header, and return its contents.

    This function does not check whether the token's login session is still active. `get_current_user` does.

    Raises:
        AuthenticationFailed: The token is missing or invalid.
    """
    if credentials is None:
        raise AuthenticationFailed(reason="no token")
    try:
        return request.state["tokens"].verify(credentials.credentials)
    except InvalidAccessToken as error:
        raise AuthenticationFailed(reason=str(error)) from error


AccessTokenDep = Annotated[AccessToken, Depends(get_access_token)]


async def get_current_user(token: AccessTokenDep, request: AppRequest) -> UserRecord:
    """Return the user that the access token in the Authorization header belongs to.

    Raises:
        AuthenticationFailed: The token is missing or invalid, its login session has ended, or the user is inactive.
    """
    structlog.contextvars.bind_contextvars(user_id=token.user_id, login_id=token.login_id.hex)  # for the access log
    user = await find_logged_in_user(request.state["fast_reader"], token.user_id, token.login_id)
    if user is None:
        raise AuthenticationFailed(reason="login ended")
    if not user.is_active:
        raise AuthenticationFailed(reason="inactive user")
    if user.security_stamp != token.security_stamp:
        raise AuthenticationFailed(reason="login ended by a change of the account")
    return user


CurrentUser = Annotated[UserRecord, Depends(get_current_user)]


async def get_current_superuser(user: CurrentUser) -> UserRecord:
    """Return the current user, who must be a superuser.

    Raises:
        PermissionDenied: The user is not a superuser.
    """
    if not user.is_superuser:
        raise PermissionDenied
    return user
