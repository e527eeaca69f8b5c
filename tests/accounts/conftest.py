"""Fixtures and helpers for account tests: a mail server, the tokens in its emails, and common requests."""

import asyncio
import re
from collections.abc import AsyncIterator, Coroutine

import httpx
import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import TITLE
from app.mail.models import Mail
from app.settings import Settings
from app.users.models import User
from tests.conftest import NO_LIMIT, Service, make_settings, serve, wait_for_blocked_statement
from tests.smtp_server import MailServer, text_of

PUBLIC_URL = "https://app.example.org/api"
RESET = "Set a new password"
VERIFICATION = "Verify your email address"
INVITATION = f"You are invited to {TITLE}"
CHANGE = "Confirm your new email address"
NEW_PASSWORD = "another password"


@pytest.fixture
def settings(database_url: str, mails: MailServer) -> Settings:
    return make_settings(
        database_url=database_url,
        database_migrate=False,
        mail=True,
        smtp_url=f"smtp://127.0.0.1:{mails.port}",
        mail_from="Example <no-reply@example.org>",
        public_url=PUBLIC_URL,
        rate_limit_mail=NO_LIMIT,
        rate_limit_recipient=NO_LIMIT,
    )


@pytest.fixture
async def service(
    settings: Settings,
    mails: MailServer,  # noqa: ARG001  started first, so that it stops last
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Service]:
    monkeypatch.setattr("app.mail.sender.POLL_SECONDS", 0.1)
    async with serve(settings) as service:
        yield service


async def token_from(mails: MailServer, subject: str, recipient: str = "ann@example.com", *, number: int = 1) -> str:
    """Wait until the recipient has `number` emails with this subject. Return the token in email number `number`."""
    mail = await mails.wait_for(subject, recipient, number=number)
    (token,) = re.findall(r"#token=(\S+)", text_of(mail))
    return str(token)


async def wait_until_outbox_is_empty(session: AsyncSession) -> None:
    """Wait until all emails have been sent or dropped."""
    while await session.scalar(select(func.count()).select_from(Mail)):
        await session.rollback()
    await session.rollback()


async def run_at_once(
    session: AsyncSession, database_url: str, *requests: Coroutine[None, None, httpx.Response]
) -> list[httpx.Response]:
    """Run requests concurrently. Hold a lock until all of them have read the user and wait to update it."""
    await session.rollback()  # start a new transaction
    await session.execute(select(User.id).with_for_update())
    tasks = [asyncio.create_task(request) for request in requests]
    await wait_for_blocked_statement(database_url, len(tasks))
    await session.rollback()
    return await asyncio.gather(*tasks)


async def request_reset(client: httpx.AsyncClient, email: str = "ann@example.com") -> httpx.Response:
    """Request an email with a link to set a new password."""
    return await client.post("/auth/password-reset", json={"email": email})


async def reset(client: httpx.AsyncClient, token: str, password: str = NEW_PASSWORD) -> httpx.Response:
    """Set a new password with the token from the email."""
    return await client.post("/auth/password-reset/confirm", json={"token": token, "new_password": password})


async def request_verification(client: httpx.AsyncClient, email: str = "ann@example.com") -> httpx.Response:
    """Request an email with a link to verify the address."""
    return await client.post("/auth/email-verification", json={"email": email})


async def verify(client: httpx.AsyncClient, token: str, password: str) -> httpx.Response:
    """Verify an email address with the token from the email and the account's password."""
    return await client.post("/auth/email-verification/confirm", json={"token": token, "password": password})
