"""Invitations: a superuser adds a user, who sets a password through the link in an email."""

import asyncio

import httpx
from sqlalchemy.ext.asyncio import AsyncSession

from app import PREFIX
from app.settings import Settings
from tests.accounts.conftest import (
    INVITATION,
    NEW_PASSWORD,
    RESET,
    request_reset,
    reset,
    token_from,
    wait_until_outbox_is_empty,
)
from tests.conftest import change, serve
from tests.people import Person, log_in, register, sign_up, sign_up_superuser
from tests.smtp_server import MailServer


async def invite(client: httpx.AsyncClient, root: Person, email: str = "ann@example.com") -> httpx.Response:
    """Invite a user as the superuser."""
    return await client.post("/users/invitations", headers=root.auth, json={"email": email, "full_name": "Ann"})


async def test_invited_user_sets_a_password_by_the_link(
    client: httpx.AsyncClient, session: AsyncSession, mails: MailServer
) -> None:
    root = await sign_up_superuser(client, session)

    response = await invite(client, root)
    early = [(await log_in(client, password=password)).status_code for password in ("", NEW_PASSWORD)]
    done = await reset(client, await token_from(mails, INVITATION))

    assert response.status_code == 201
    user = response.json()
    assert response.headers["location"] == f"{PREFIX}/users/{user['id']}"
    assert (user["email"], user["is_superuser"], user["email_verified"]) == ("ann@example.com", False, False)
    assert early == [401, 401]
    assert done.status_code == 204
    tokens = (await log_in(client, password=NEW_PASSWORD)).json()
    me = (await client.get("/users/me", headers={"Authorization": f"Bearer {tokens['access_token']}"})).json()
    assert me["email_verified"] is True


async def test_invitation_works_once(client: httpx.AsyncClient, session: AsyncSession, mails: MailServer) -> None:
    await invite(client, await sign_up_superuser(client, session))
    token = await token_from(mails, INVITATION)

    responses = await asyncio.gather(*(reset(client, token) for _ in range(3)))

    assert sorted(response.status_code for response in responses) == [204, 400, 400]


async def test_revoked_invitation_is_invalid_and_not_revived_by_a_reset(
    client: httpx.AsyncClient, session: AsyncSession, mails: MailServer
) -> None:
    root = await sign_up_superuser(client, session)
    user = (await invite(client, root)).json()
    token = await token_from(mails, INVITATION)

    await client.delete(f"/users/{user['id']}", headers=root.auth)
    await request_reset(client)
    await wait_until_outbox_is_empty(session)

    assert (await reset(client, token)).status_code == 400
    assert RESET not in [mail["Subject"] for mail in mails.mails]
    assert (await log_in(client, password=NEW_PASSWORD)).status_code == 401


async def test_only_a_superuser_can_repeat_an_invitation(
    client: httpx.AsyncClient, session: AsyncSession, mails: MailServer
) -> None:
    root = await sign_up_superuser(client, session)
    user = (await invite(client, root)).json()
    older = await token_from(mails, INVITATION)

    await request_reset(client)
    await wait_until_outbox_is_empty(session)
    await client.post(f"/users/{user['id']}/password-reset", headers=root.auth)
    newer = await token_from(mails, INVITATION, number=2)

    assert RESET not in [mail["Subject"] for mail in mails.mails]
    assert (await reset(client, older)).status_code == 400
    assert (await reset(client, newer)).status_code == 204
    assert (await reset(client, older)).status_code == 400


async def test_taken_address_returns_400(client: httpx.AsyncClient, session: AsyncSession) -> None:
    root = await sign_up_superuser(client, session)
    await register(client)

    response = await invite(client, root, "ANN@example.com")

    assert response.status_code == 400
    assert response.json() == {"error": "Email already registered", "type": "validation_error"}


async def test_closed_registration_returns_403_while_invitations_work(settings: Settings, mails: MailServer) -> None:
    async with serve(settings) as service, AsyncSession(service.state["engine"]) as session:
        root = await sign_up_superuser(service.client, session)
    async with serve(change(settings, registration="closed")) as service:
        refused = await register(service.client, "bob@example.com")
        invited = await invite(service.client, root)
        accepted = await reset(service.client, await token_from(mails, INVITATION))

    assert (refused.status_code, refused.json()) == (
        403,
        {"error": "Registration is closed", "type": "permission_error"},
    )
    assert (invited.status_code, accepted.status_code) == (201, 204)


async def test_only_superusers_invite(client: httpx.AsyncClient, session: AsyncSession, mails: MailServer) -> None:
    ann = await sign_up(client)

    response = await invite(client, ann, "bob@example.com")
    await wait_until_outbox_is_empty(session)

    assert response.status_code == 403
    assert {mail["X-Recipient"] for mail in mails.mails} == {"ann@example.com"}
