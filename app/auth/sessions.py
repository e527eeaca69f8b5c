"""The routes that list and end logins, which the API calls sessions."""

from uuid import UUID

from fastapi import APIRouter, status

from app.auth import service
from app.auth.errors import SessionNotFound
from app.auth.schemas import SessionList
from app.dependencies import ReadSession, WriteSession
from app.errors import PermissionDenied, responses
from app.schemas import Id
from app.users.dependencies import AccessTokenDep, CurrentSuperuser, CurrentUser
from app.users.errors import UserNotFound
from app.users.service import get_user

router = APIRouter(tags=["auth"])


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
    responses=responses(PermissionDenied, UserNotFound),
    response_description="The sessions",
    summary="List a user's sessions",
)
async def list_sessions(user_id: Id, _: CurrentSuperuser, token: AccessTokenDep, session: ReadSession) -> SessionList:
    """List up to 100 of a user's sessions, most recently used first. Only superusers can call this endpoint."""
    await get_user(session, user_id)
    return await service.list_sessions(session, user_id, current=token.login_id)


@router.delete(
    "/users/{user_id}/sessions",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(PermissionDenied, UserNotFound),
    response_description="The sessions have ended",
    summary="End a user's sessions",
)
async def end_sessions(user_id: Id, _: CurrentSuperuser, session: WriteSession) -> None:
    """End all of a user's sessions. Only superusers can call this endpoint.

    The sessions' access and refresh tokens stop working immediately. The links in emails to the user remain valid.
    """
    await get_user(session, user_id)
    await service.end_sessions(session, user_id)


@router.delete(
    "/users/{user_id}/sessions/{session_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(PermissionDenied, SessionNotFound),
    response_description="The session has ended",
    summary="End a user's session",
)
async def end_session(user_id: Id, session_id: UUID, _: CurrentSuperuser, session: WriteSession) -> None:
    """End one of a user's sessions. Its tokens stop working immediately. Only superusers can call this endpoint."""
    await service.end_session(session, user_id, session_id)
