"""The authentication routes."""

from contextlib import suppress

from fastapi import APIRouter, status

from app.auth import service
from app.auth.errors import InvalidRefreshToken, LoginFailed
from app.auth.schemas import Credentials, RefreshRequest, TokenPair
from app.database import ReaderDep, WriteSession
from app.errors import (
    InternalError,
    InvalidRequest,
    PayloadTooLarge,
    RateLimited,
    ServiceUnavailable,
    UnknownHost,
    UnsupportedMediaType,
    responses,
)
from app.state import LimiterDep, PasswordsDep, TokensDep

router = APIRouter(
    prefix="/auth",
    tags=["auth"],
    responses=responses(
        UnknownHost,
        PayloadTooLarge,
        UnsupportedMediaType,
        InvalidRequest,
        RateLimited,
        InternalError,
        ServiceUnavailable,
    ),
)


@router.post("/login", responses=responses(LoginFailed), response_description="A pair of tokens", summary="Log in")
async def login(  # noqa: PLR0913  all that a login takes
    *,
    credentials: Credentials,
    reader: ReaderDep,
    session: WriteSession,
    passwords: PasswordsDep,
    tokens: TokensDep,
    limiter: LimiterDep,
) -> TokenPair:
    """Exchanges an email address and a password for an access token and a refresh token.

    Send the access token as `Authorization: Bearer …`. An unknown address, a wrong password and an inactive user are
    answered alike.
    """
    return await service.login(
        credentials, reader=reader, session=session, passwords=passwords, tokens=tokens, limiter=limiter
    )


@router.post(
    "/refresh",
    responses=responses(InvalidRefreshToken),
    response_description="A new pair of tokens",
    summary="Refresh your tokens",
)
async def refresh(data: RefreshRequest, session: WriteSession, tokens: TokensDep) -> TokenPair:
    """Exchanges a refresh token for a new pair.

    Each refresh token works once. Presenting one a second time ends the whole login, since somebody has a copy of it.
    """
    return await service.refresh(data.refresh_token, session=session, tokens=tokens)


@router.post(
    "/logout",
    status_code=status.HTTP_204_NO_CONTENT,
    response_description="The login has ended",
    summary="Log out",
)
async def logout(data: RefreshRequest, session: WriteSession) -> None:
    """Ends the login that a refresh token belongs to.

    A token that is already dead, or never was one, is answered alike. The access token runs on until it expires.
    """
    with suppress(InvalidRefreshToken):
        await service.end_family(data.refresh_token, session=session)
