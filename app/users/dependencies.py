"""Who is calling, as types: a signature with `CurrentUser` in it is a route for users only."""

from typing import Annotated, Any

from fastapi import Depends
from fastapi.security import HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param

from app.errors import AuthenticationFailed, PermissionDenied
from app.security import InvalidTokenError
from app.state import AppRequest
from app.users.models import UserRow
from app.users.service import find_user


class _Authentication(HTTPBearer):
    """The user whom the token in the `Authorization` header stands for."""

    # One dependency, where a function that depends on FastAPI's own class would be two, each solved by itself.
    async def __call__(self, request: AppRequest) -> UserRow:  # type: ignore[override]  # not a token, but whose it is
        scheme, token = get_authorization_scheme_param(request.headers.get("authorization"))
        if scheme.lower() != "bearer":
            raise AuthenticationFailed
        try:
            user_id = request.state["tokens"].read(token)
        except InvalidTokenError as error:
            raise AuthenticationFailed from error
        # The reader gives its connection back at once. One that was kept as long as the request lasts would be held
        # while a write waits for its own: with as many requests as connections, all would wait for each other.
        user = await find_user(request.state["reader"], user_id)
        if user is None or not user.is_active:
            raise AuthenticationFailed
        return user


class _SuperuserAuthentication(_Authentication):
    """The same, for superusers only."""

    async def __call__(self, request: AppRequest) -> UserRow:  # type: ignore[override]  # as above
        user = await super().__call__(request)
        if not user.is_superuser:
            raise PermissionDenied
        return user


_SCHEME: dict[str, Any] = {
    "scheme_name": "BearerAuth",
    "bearerFormat": "JWT",
    "description": "The `access_token` that `POST /auth/login` answers with.",
}
CurrentUser = Annotated[UserRow, Depends(_Authentication(**_SCHEME))]
CurrentSuperuser = Annotated[UserRow, Depends(_SuperuserAuthentication(**_SCHEME))]
