"""The routes of the authentication feature."""

from contextlib import suppress

from fastapi import APIRouter, status

from app.auth import service
from app.auth.dependencies import ClientDep
from app.auth.errors import EmailNotVerified, InvalidRefreshToken, LoginFailed
from app.auth.schemas import Credentials, RefreshRequest, TokenPair
from app.dependencies import FastReaderDep, LimiterDep, PasswordsDep, SettingsDep, TokensDep, WriteSession
from app.errors import responses
from app.limiter import rate_limit

router = APIRouter(prefix="/auth", tags=["auth"])


@router.post(
    "/login",
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
        credentials,
        client,
        settings=settings,
        reader=reader,
        session=session,
        passwords=passwords,
        tokens=tokens,
        limiter=limiter,
    )


@router.post(
    "/refresh",
    responses=responses(InvalidRefreshToken),
    response_description="A new pair of tokens",
    summary="Refresh tokens",
)
async def refresh(data: RefreshRequest, session: WriteSession, tokens: TokensDep) -> TokenPair:
    """Exchange a refresh token for a new pair of tokens.

    Each refresh token can be used once. For a short time afterwards (ten seconds by default), but only until the new
    refresh token is used, sending the old token again returns the same new refresh token, in case the first response
    was lost. Any other reuse ends the session, because the token may have been stolen.
    """
    return await service.refresh(data.refresh_token, session=session, tokens=tokens)


@router.post(
    "/logout",
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
        await service.log_out(data.refresh_token, session=session, tokens=tokens)
