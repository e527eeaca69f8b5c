"""The routes of the accounts feature."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response, status

from app.accounts import service
from app.accounts.errors import IncorrectPassword, InvalidMailToken
from app.accounts.pages import read_page
from app.accounts.schemas import Accepted, EmailVerification, Invitation, MailRequest, PasswordReset
from app.accounts.tokens import MailTokens
from app.dependencies import (
    FastReaderDep,
    LimiterDep,
    OutboxDep,
    PasswordsDep,
    SettingsDep,
    WriteSession,
)
from app.errors import PermissionDenied, responses
from app.limiter import rate_limit
from app.pagination import url_path
from app.schemas import Id
from app.users.dependencies import get_current_superuser
from app.users.errors import EmailTaken, UserNotFound
from app.users.models import User
from app.users.schemas import UserResponse
from app.users.service import get_user

router = APIRouter(tags=["accounts"])


async def get_mail_tokens(settings: SettingsDep) -> MailTokens:
    return MailTokens(settings)


MailTokensDep = Annotated[MailTokens, Depends(get_mail_tokens)]


@router.post(
    "/auth/password-reset",
    status_code=status.HTTP_202_ACCEPTED,
    response_description="The request is accepted",
    summary="Request an email to set a new password",
)
@rate_limit("mail")
async def request_password_reset(session: WriteSession, outbox: OutboxDep, data: MailRequest) -> Accepted:
    """Send a link to set a new password, if the address belongs to an active account that has a password.

    The response and its timing are the same for every address. The link works once, and for a limited time. It becomes
    invalid when a newer link is sent, the password or the email address changes, the account is deactivated, or the
    operator runs `python -m app end-logins`. Ending the user's sessions with this API does not invalidate the link.
    """
    outbox.add(session, "password_reset", data.email)
    return Accepted()


@router.post(
    "/auth/password-reset/confirm",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(InvalidMailToken),
    response_description="The password is set",
    summary="Set a new password",
)
@rate_limit("login")
async def reset_password(  # noqa: PLR0913  each is needed
    *,
    data: PasswordReset,
    reader: FastReaderDep,
    session: WriteSession,
    passwords: PasswordsDep,
    tokens: MailTokensDep,
    outbox: OutboxDep,
) -> None:
    """Set a new password with the token from a password reset email or an invitation, and log the user out everywhere.

    All of the user's access and refresh tokens stop working immediately. The email address then counts as verified, and
    any `pending_email` is discarded.
    """
    await service.reset_password(session, data, reader=reader, passwords=passwords, tokens=tokens, outbox=outbox)


@router.post(
    "/auth/email-verification",
    status_code=status.HTTP_202_ACCEPTED,
    response_description="The request is accepted",
    summary="Request an email to verify an address",
)
@rate_limit("mail")
async def request_email_verification(session: WriteSession, outbox: OutboxDep, data: MailRequest) -> Accepted:
    """Send a link to verify an email address, if the address belongs to an active account and is not verified yet.

    The response and its timing are the same for every address. To receive another link for a `pending_email`, update
    the current user with that address again.
    """
    outbox.add(session, "email_verification", data.email)
    return Accepted()


@router.post(
    "/auth/email-verification/confirm",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(InvalidMailToken, EmailTaken, IncorrectPassword),
    response_description="The address is verified",
    summary="Verify an email address",
)
@rate_limit("login")
async def verify_email(  # noqa: PLR0913  each is needed
    *,
    data: EmailVerification,
    reader: FastReaderDep,
    session: WriteSession,
    passwords: PasswordsDep,
    tokens: MailTokensDep,
    outbox: OutboxDep,
    limiter: LimiterDep,
) -> None:
    """Verify an email address, using the account's password and the token from the email to this address.

    If the address is the account's `pending_email`, it replaces the current address. If the password is wrong, the
    token remains valid.
    """
    await service.verify_email(
        session,
        data,
        reader=reader,
        passwords=passwords,
        tokens=tokens,
        outbox=outbox,
        limiter=limiter,
    )


@router.post(
    "/users/invitations",
    dependencies=[Depends(get_current_superuser)],
    status_code=status.HTTP_201_CREATED,
    response_model=UserResponse,
    responses=responses(EmailTaken, PermissionDenied)
    | {201: {"headers": {"Location": {"schema": {"type": "string"}}}}},
    response_description="The created user",
    summary="Invite a user",
)
async def invite_user(
    *,
    session: WriteSession,
    outbox: OutboxDep,
    data: Invitation,
    request: Request,
    response: Response,
) -> User:
    """Create a user account without a password, and send the user a link to set one.

    Only superusers can invite users. To revoke the invitation, delete the user. To send it again, call
    `POST /users/{user_id}/password-reset`.
    """
    user = await service.invite(session, outbox, data)
    response.headers["Location"] = f"{url_path(request).removesuffix('invitations')}{user.id}"
    return user


@router.post(
    "/users/{user_id}/password-reset",
    dependencies=[Depends(get_current_superuser)],
    status_code=status.HTTP_202_ACCEPTED,
    responses=responses(PermissionDenied, UserNotFound),
    response_description="The request is accepted",
    summary="Send a user an email to set a new password",
)
async def send_password_reset(user_id: Id, session: WriteSession, outbox: OutboxDep) -> Accepted:
    """Send an active user a link to set a new password.

    If the user has not set a password yet, the invitation is sent again instead. Only superusers can call this
    endpoint.
    """
    user = await get_user(session, user_id)
    outbox.add(session, "password_reset" if user.password_hash else "invitation", user.email)
    return Accepted()


@router.post(
    "/users/{user_id}/email-verification",
    dependencies=[Depends(get_current_superuser)],
    status_code=status.HTTP_202_ACCEPTED,
    responses=responses(PermissionDenied, UserNotFound),
    response_description="The request is accepted",
    summary="Send a user an email to verify the address",
)
async def send_email_verification(user_id: Id, session: WriteSession, outbox: OutboxDep) -> Accepted:
    """Send an active user a link to verify their email address.

    If the address is already verified, nothing is sent. Only superusers can call this endpoint.
    """
    outbox.add(session, "email_verification", (await get_user(session, user_id)).email)
    return Accepted()


@router.get("/account/{name}", include_in_schema=False)
async def get_page(name: str) -> Response:
    """Return a page that emails link to, or the script or style sheet shared by these pages."""
    return read_page(name)
