"""The routes of the authentication feature. The API calls a login a session."""

from contextlib import suppress
from uuid import UUID

from fastapi import APIRouter, Depends, status

from app.auth import service
from app.auth.client import ClientDep
from app.auth.errors import EmailNotVerified, InvalidRefreshToken, LoginFailed, SessionNotFound
from app.auth.schemas import Credentials, RefreshRequest, SessionList, TokenPair
from app.dependencies import FastReaderDep, LimiterDep, PasswordsDep, ReadSession, SettingsDep, TokensDep, WriteSession
from app.errors import PermissionDenied, responses
from app.limiter import rate_limit
from app.schemas import Id
from app.users.dependencies import AccessTokenDep, CurrentUser, get_current_superuser
from app.users.errors import UserNotFound
from app.users.service import get_user

router = APIRouter(tags=["auth"])


@router.post(
    "/auth/login",
    responses=responses(LoginFailed, EmailNotVerified),
    response_description="A pair of tokens",
    summary="Log in",
)
@rate_limit("login")
async def login(  # noqa: PLR0913  each is needed
    *,
    credentials: Credentials,
    client: ClientDep,
    settings: SettingsDep,
    reader: FastReaderDep,
    session: WriteSession,
    passwords: PasswordsDep,
    tokens: TokensDep,
    limiter: LimiterDep,
) -> TokenPair:
    """Exchange an email address and a password for an access token and a refresh token.

    Send the access token in the `Authorization: Bearer …` header. The response is the same for an unknown address, a
    wrong password and an inactive user. If the service requires verified email addresses, a correct password gets a 403
    response until the address is verified.
    """
    return await service.login(
        session,
        credentials,
        client,
        settings=settings,
        reader=reader,
        passwords=passwords,
        tokens=tokens,
        limiter=limiter,
    )


@router.post(
    "/auth/refresh",
    responses=responses(InvalidRefreshToken),
    response_description="A new pair of tokens",
    summary="Refresh tokens",
)
async def refresh(data: RefreshRequest, session: WriteSession, tokens: TokensDep) -> TokenPair:
    """Exchange a refresh token for a new pair of tokens.

    Each refresh token can be used once. If the response is lost, send the old token again: for ten seconds by default,
    and only until the new refresh token is used, it returns the same new refresh token. Reuse after that ends the
    session, because the token may have been stolen.
    """
    return await service.refresh(session, tokens, data.refresh_token)


@router.post(
    "/auth/logout",
    status_code=status.HTTP_204_NO_CONTENT,
    response_description="The session has ended, or the token is invalid",
    summary="Log out",
)
async def logout(data: RefreshRequest, session: WriteSession, tokens: TokensDep) -> None:
    """End the session that a refresh token belongs to.

    The session's access tokens stop working immediately. The response to an invalid refresh token is the same as to a
    valid one.
    """
    with suppress(InvalidRefreshToken):
        await service.log_out(session, tokens, data.refresh_token)


@router.get("/auth/sessions", response_description="The sessions", summary="List the current user's sessions")
async def list_my_sessions(user: CurrentUser, token: AccessTokenDep, session: ReadSession) -> SessionList:
    """List up to 100 of the current user's sessions, most recently used first.

    A session counts as used when it is created and whenever its tokens are refreshed, not on every request.
    """
    return await service.list_sessions(session, user.id, current=token.login_id)


@router.delete(
    "/auth/sessions",
    status_code=status.HTTP_204_NO_CONTENT,
    response_description="The other sessions have ended",
    summary="End the current user's other sessions",
)
async def end_my_other_sessions(user: CurrentUser, token: AccessTokenDep, session: WriteSession) -> None:
    """End all of the current user's sessions, except the one that this request belongs to.

    The tokens of the ended sessions stop working immediately.
    """
    await service.end_sessions(session, user.id, keep=token.login_id)


@router.delete(
    "/auth/sessions/{session_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(SessionNotFound),
    response_description="The session has ended",
    summary="End one of the current user's sessions",
)
async def end_my_session(session_id: UUID, user: CurrentUser, session: WriteSession) -> None:
    """End one of the current user's sessions. Its tokens stop working immediately.

    This may be the session that the request itself belongs to.
    """
    await service.end_session(session, user.id, session_id)


@router.get(
    "/users/{user_id}/sessions",
    dependencies=[Depends(get_current_superuser)],
    responses=responses(PermissionDenied, UserNotFound),
    response_description="The sessions",
    summary="List a user's sessions",
)
async def list_sessions(user_id: Id, token: AccessTokenDep, session: ReadSession) -> SessionList:
    """List up to 100 of a user's sessions, most recently used first. Only superusers can call this endpoint."""
    await get_user(session, user_id)
    return await service.list_sessions(session, user_id, current=token.login_id)


@router.delete(
    "/users/{user_id}/sessions",
    dependencies=[Depends(get_current_superuser)],
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(PermissionDenied, UserNotFound),
    response_description="The sessions have ended",
    summary="End a user's sessions",
)
async def end_sessions(user_id: Id, session: WriteSession) -> None:
    """End all of a user's sessions. Only superusers can call this endpoint.

    The sessions' access and refresh tokens stop working immediately. The links in emails to the user remain valid.
    """
    await get_user(session, user_id)
    await service.end_sessions(session, user_id)


@router.delete(
    "/users/{user_id}/sessions/{session_id}",
    dependencies=[Depends(get_current_superuser)],
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(PermissionDenied, SessionNotFound),
    response_description="The session has ended",
    summary="End a user's session",
)
async def end_session(user_id: Id, session_id: UUID, session: WriteSession) -> None:
    """End one of a user's sessions. Its tokens stop working immediately. Only superusers can call this endpoint."""
    await service.end_session(session, user_id, session_id)
