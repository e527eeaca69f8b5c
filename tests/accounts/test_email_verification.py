"""Email verification: the link in an email, together with the account's password, verifies an address."""

import asyncio

import httpx
import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import PREFIX
from app.settings import Settings
from app.users.models import User
from app.users.service import new_security_stamp
from tests.accounts.conftest import (
    CHANGE,
    NEW_PASSWORD,
    RESET,
    VERIFICATION,
    request_reset,
    request_verification,
    reset,
    run_at_once,
    token_from,
    verify,
    wait_until_outbox_is_empty,
)
from tests.conftest import change, client_at, serve, wait_for_blocked_statement, with_state
from tests.people import PASSWORD, log_in, register, sign_up, sign_up_superuser
from tests.smtp_server import MailServer, text_of

NOT_VERIFIED = {
    "error": f"Verify your email address first; POST {PREFIX}/auth/email-verification sends an email for it",
    "type": "permission_error",
}


async def get_me(client: httpx.AsyncClient, auth: dict[str, str]) -> dict[str, object]:
    me: dict[str, object] = (await client.get("/users/me", headers=auth)).json()
    return me


async def test_registration_sends_a_link_that_verifies_the_address(
    client: httpx.AsyncClient, mails: MailServer
) -> None:
    ann = await sign_up(client)
    before = await get_me(client, ann.auth)

    response = await verify(client, await token_from(mails, VERIFICATION), PASSWORD)

    assert (response.status_code, response.content) == (204, b"")
    assert (before["email_verified"], before["pending_email"]) == (False, None)
    assert (await get_me(client, ann.auth))["email_verified"] is True  # verification does not log the user out
    assert "for 24 hours" not in text_of(await mails.wait_for(VERIFICATION))
    assert "for 1 day." in text_of(await mails.wait_for(VERIFICATION))


async def test_registration_with_a_taken_address_sends_no_mail(
    client: httpx.AsyncClient, session: AsyncSession, mails: MailServer
) -> None:
    await register(client)
    await mails.wait_for(VERIFICATION)

    response = await register(client)
    await wait_until_outbox_is_empty(session)

    assert response.status_code == 400
    assert len(mails.mails) == 1


async def test_wrong_password_leaves_the_token_valid(client: httpx.AsyncClient, mails: MailServer) -> None:
    """Verification requires the account's password.

    Otherwise, an attacker could register another person's address, and that person might verify it with the link.
    """
    ann = await sign_up(client)
    token = await token_from(mails, VERIFICATION)

    response = await verify(client, token, "the password of somebody else")

    assert (response.status_code, response.json()["error"]) == (401, "Incorrect password")
    assert response.headers["www-authenticate"] == "Bearer"
    assert (await get_me(client, ann.auth))["email_verified"] is False
    assert (await verify(client, token, PASSWORD)).status_code == 204


async def test_guesses_of_the_password_are_limited_together_with_logins(settings: Settings, mails: MailServer) -> None:
    async with serve(change(settings, rate_limit_login="3/minute")) as service:
        await register(service.client)
        token = await token_from(mails, VERIFICATION)
        statuses = [(await verify(service.client, token, "wrong")).status_code for _ in range(2)]
        statuses += [(await log_in(service.client)).status_code]
        async with client_at("10.0.0.1", with_state(service)) as elsewhere:
            rejected = await log_in(elsewhere)

    assert [*statuses, rejected.status_code] == [401, 401, 200, 429]
    assert rejected.headers["ratelimit-policy"].startswith('"account"')


async def test_token_works_once(
    client: httpx.AsyncClient, session: AsyncSession, database_url: str, mails: MailServer
) -> None:
    await register(client)
    token = await token_from(mails, VERIFICATION)
    await wait_until_outbox_is_empty(session)

    responses = await run_at_once(session, database_url, *(verify(client, token, PASSWORD) for _ in range(3)))

    assert sorted(response.status_code for response in responses) == [204, 400, 400]


async def test_token_works_once_even_if_the_address_is_changed_and_changed_back(
    client: httpx.AsyncClient, session: AsyncSession, mails: MailServer
) -> None:
    root, ann = await sign_up_superuser(client, session), await sign_up(client)
    token = await token_from(mails, VERIFICATION)
    await verify(client, token, PASSWORD)

    for email in ("new@example.com", "ann@example.com"):
        response = await client.patch(f"/users/{ann.id}", headers=root.auth, json={"email": email})
        assert response.json()["email_verified"] is False

    assert (await verify(client, token, PASSWORD)).status_code == 400


async def test_reset_by_the_owner_ends_the_logins_and_links_of_a_squatter(
    client: httpx.AsyncClient, mails: MailServer
) -> None:
    squatter = await sign_up(client)  # the squatter registers with Ann's address
    token = await token_from(mails, VERIFICATION)
    await request_reset(client)

    await reset(client, await token_from(mails, RESET))

    assert (await client.get("/users/me", headers=squatter.auth)).status_code == 401
    assert (await verify(client, token, PASSWORD)).status_code == 400
    ann = (await log_in(client, password=NEW_PASSWORD)).json()
    assert (await get_me(client, {"Authorization": f"Bearer {ann['access_token']}"}))["email_verified"] is True


async def test_further_link_is_sent_on_request_until_the_address_is_verified(
    client: httpx.AsyncClient, session: AsyncSession, mails: MailServer
) -> None:
    await register(client)
    older = await token_from(mails, VERIFICATION)

    response = await request_verification(client)
    newer = await token_from(mails, VERIFICATION, number=2)
    statuses = [(await verify(client, token, PASSWORD)).status_code for token in (older, newer)]
    last = await request_verification(client)
    await wait_until_outbox_is_empty(session)

    assert (response.status_code, last.status_code) == (202, 202)
    assert response.text == last.text == (await request_verification(client, "bob@example.com")).text
    assert statuses == [400, 204]
    assert len(mails.mails) == 2


async def test_superuser_can_send_a_verification_link(
    client: httpx.AsyncClient, session: AsyncSession, mails: MailServer
) -> None:
    root, ann = await sign_up_superuser(client, session), await sign_up(client)

    response = await client.post(f"/users/{ann.id}/email-verification", headers=root.auth)

    assert response.status_code == 202
    token = await token_from(mails, VERIFICATION, number=2)
    assert (await verify(client, token, PASSWORD)).status_code == 204
    assert (await client.post("/users/99/email-verification", headers=root.auth)).status_code == 404


async def test_login_may_require_a_verified_address(settings: Settings, mails: MailServer) -> None:
    async with serve(change(settings, require_verified_email=True)) as service:
        await register(service.client)
        early = await log_in(service.client)
        wrong = await log_in(service.client, password="a wrong password")
        await verify(service.client, await token_from(mails, VERIFICATION), PASSWORD)
        late = await log_in(service.client)

    assert (early.status_code, early.json()) == (403, NOT_VERIFIED)
    assert wrong.status_code == 401
    assert late.status_code == 200


# A new address -------------------------------------------------------------------------------------------------------


async def test_new_address_takes_effect_when_it_is_confirmed(client: httpx.AsyncClient, mails: MailServer) -> None:
    ann = await sign_up(client)
    asked = await client.patch("/users/me", headers=ann.auth, json={"email": "New@example.com", "full_name": "Ann New"})
    token = await token_from(mails, CHANGE, "new@example.com")
    pending = await log_in(client, "new@example.com")

    response = await verify(client, token, PASSWORD)

    assert asked.status_code == 200
    assert (asked.json()["email"], asked.json()["pending_email"]) == ("ann@example.com", "new@example.com")
    assert asked.json()["full_name"] == "Ann New"
    assert pending.status_code == 401
    assert response.status_code == 204
    me = await get_me(client, ann.auth)
    assert (me["email"], me["pending_email"], me["email_verified"]) == ("new@example.com", None, True)
    assert (await log_in(client, "new@example.com")).status_code == 200
    assert await mails.wait_for("A new email address was entered for your account", "ann@example.com")
    assert await mails.wait_for("The email address of your account was changed", "ann@example.com")
    assert (await verify(client, token, PASSWORD)).status_code == 400


async def test_taken_address_returns_400_and_sends_no_mail(
    client: httpx.AsyncClient, session: AsyncSession, mails: MailServer
) -> None:
    ann = await sign_up(client)
    await register(client, "bob@example.com")

    response = await client.patch("/users/me", headers=ann.auth, json={"email": "bob@example.com"})
    await wait_until_outbox_is_empty(session)

    assert response.status_code == 400
    assert response.json() == {"error": "Email already registered", "type": "validation_error"}
    assert {mail["Subject"] for mail in mails.mails} == {VERIFICATION}


async def test_address_taken_before_the_confirmation_returns_400(client: httpx.AsyncClient, mails: MailServer) -> None:
    ann = await sign_up(client)
    await client.patch("/users/me", headers=ann.auth, json={"email": "new@example.com"})
    token = await token_from(mails, CHANGE, "new@example.com")
    await register(client, "new@example.com")

    response = await verify(client, token, PASSWORD)

    assert response.status_code == 400
    assert response.json() == {"error": "Email already registered", "type": "validation_error"}
    assert (await get_me(client, ann.auth))["email"] == "ann@example.com"


async def test_concurrent_confirmations_of_one_address_succeed_once(
    client: httpx.AsyncClient, session: AsyncSession, database_url: str, mails: MailServer
) -> None:
    people = [await sign_up(client, email) for email in ("ann@example.com", "bob@example.com")]
    for person in people:
        await client.patch("/users/me", headers=person.auth, json={"email": "new@example.com"})
    await wait_until_outbox_is_empty(session)
    changes = [mail for mail in mails.mails if mail["Subject"] == CHANGE]
    tokens = [text_of(mail).partition("#token=")[2].split()[0] for mail in changes]

    responses = await run_at_once(session, database_url, *(verify(client, token, PASSWORD) for token in tokens))

    assert sorted(response.status_code for response in responses) == [204, 400]
    assert [response.json()["error"] for response in responses if response.is_error] == ["Email already registered"]
    emails = [(await get_me(client, person.auth))["email"] for person in people]
    assert emails.count("new@example.com") == 1
    assert emails in (["new@example.com", "bob@example.com"], ["ann@example.com", "new@example.com"])


async def test_concurrent_changes_leave_one_token_and_its_address(
    client: httpx.AsyncClient, session: AsyncSession, database_url: str, mails: MailServer
) -> None:
    ann = await sign_up(client)
    emails = ["first@example.com", "second@example.com"]
    requests = [client.patch("/users/me", headers=ann.auth, json={"email": email}) for email in emails]

    await run_at_once(session, database_url, *requests)
    await wait_until_outbox_is_empty(session)
    pending = (await get_me(client, ann.auth))["pending_email"]
    changes = {str(mail["X-Recipient"]): mail for mail in mails.mails if mail["Subject"] == CHANGE}
    statuses = {
        email: (await verify(client, text_of(mail).partition("#token=")[2].split()[0], PASSWORD)).status_code
        for email, mail in changes.items()
    }

    assert pending in emails
    assert {email for email, status in statuses.items() if status == 204} == {pending}
    assert (await get_me(client, ann.auth))["email"] == pending


async def test_concurrent_reset_and_confirmation_do_not_both_succeed(
    client: httpx.AsyncClient, session: AsyncSession, database_url: str, mails: MailServer
) -> None:
    ann = await sign_up(client)
    await client.patch("/users/me", headers=ann.auth, json={"email": "thief@example.com"})
    for_change = await token_from(mails, CHANGE, "thief@example.com")
    await request_reset(client)
    for_reset = await token_from(mails, RESET)
    await wait_until_outbox_is_empty(session)

    done, changed = await run_at_once(
        session, database_url, reset(client, for_reset), verify(client, for_change, PASSWORD)
    )

    assert sorted([done.status_code, changed.status_code]) == [204, 400]
    email, pending = (await session.execute(select(User.email, User.pending_email))).one()
    assert (email, pending) == ("ann@example.com" if done.is_success else "thief@example.com", None)


async def test_email_change_during_password_reset_returns_401(
    client: httpx.AsyncClient, session: AsyncSession, database_url: str, mails: MailServer
) -> None:
    """An intruder who is logged out by a password reset must not leave behind a pending email change."""
    ann = await sign_up(client)
    await mails.wait_for(VERIFICATION)
    await wait_until_outbox_is_empty(session)

    await session.execute(update(User).values(new_security_stamp()))
    changing = asyncio.create_task(client.patch("/users/me", headers=ann.auth, json={"email": "thief@example.com"}))
    await wait_for_blocked_statement(database_url)
    await session.commit()
    response = await changing
    await wait_until_outbox_is_empty(session)

    assert response.status_code == 401
    assert await session.scalar(select(User.pending_email)) is None
    assert len(mails.mails) == 1


async def test_password_change_during_verification_makes_the_link_invalid(
    client: httpx.AsyncClient, session: AsyncSession, database_url: str, mails: MailServer
) -> None:
    await register(client)
    token = await token_from(mails, VERIFICATION)
    await wait_until_outbox_is_empty(session)

    await session.execute(update(User).values(new_security_stamp()))
    verifying = asyncio.create_task(verify(client, token, PASSWORD))
    await wait_for_blocked_statement(database_url)
    await session.commit()

    assert (await verifying).status_code == 400
    assert await session.scalar(select(User.email_verified)) is False


async def test_newer_change_replaces_an_older_one(client: httpx.AsyncClient, mails: MailServer) -> None:
    """A token verifies only the address to which it was sent. A newer request for a change invalidates older tokens."""
    ann = await sign_up(client)
    await client.patch("/users/me", headers=ann.auth, json={"email": "first@example.com"})
    first = await token_from(mails, CHANGE, "first@example.com")
    await client.patch("/users/me", headers=ann.auth, json={"email": "second@example.com"})
    second = await token_from(mails, CHANGE, "second@example.com")

    assert (await verify(client, first, PASSWORD)).status_code == 400
    assert (await verify(client, second, PASSWORD)).status_code == 204
    assert (await get_me(client, ann.auth))["email"] == "second@example.com"


async def test_own_address_cancels_a_pending_change(client: httpx.AsyncClient, mails: MailServer) -> None:
    ann = await sign_up(client)
    await verify(client, await token_from(mails, VERIFICATION), PASSWORD)
    await client.patch("/users/me", headers=ann.auth, json={"email": "new@example.com"})
    token = await token_from(mails, CHANGE, "new@example.com")

    response = await client.patch("/users/me", headers=ann.auth, json={"email": "ann@example.com"})

    assert (response.json()["pending_email"], response.json()["email_verified"]) == (None, True)
    assert (await verify(client, token, PASSWORD)).status_code == 400


async def test_requests_for_an_unknown_address_do_not_use_up_its_limit(settings: Settings, mails: MailServer) -> None:
    async with serve(change(settings, rate_limit_recipient="1/hour")) as service:
        async with AsyncSession(service.state["engine"]) as session:
            for _ in range(3):
                await request_verification(service.client)
                await wait_until_outbox_is_empty(session)
        await register(service.client)

        await mails.wait_for(VERIFICATION)


async def test_changes_of_the_address_are_limited(settings: Settings) -> None:
    """Without the limit, a user could make the service send emails to any number of strangers."""
    async with serve(change(settings, rate_limit_recipient="2/hour")) as service:
        ann = await sign_up(service.client)
        statuses = [
            (
                await service.client.patch("/users/me", headers=ann.auth, json={"email": f"{name}@example.com"})
            ).status_code
            for name in ("first", "second", "third")
        ]

    assert statuses == [200, 200, 429]


@pytest.mark.parametrize("is_verified", [True, False])
async def test_address_that_a_superuser_enters_is_not_verified(
    client: httpx.AsyncClient, session: AsyncSession, *, is_verified: bool
) -> None:
    root, ann = await sign_up_superuser(client, session), await sign_up(client)
    await session.execute(update(User).values(email_verified=is_verified))
    await session.commit()
    url = f"/users/{ann.id}"

    same = await client.patch(url, headers=root.auth, json={"email": "ann@example.com", "is_active": True})
    other = await client.patch(url, headers=root.auth, json={"email": "new@example.com"})

    assert same.json()["email_verified"] is is_verified
    assert (other.json()["email"], other.json()["email_verified"]) == ("new@example.com", False)


async def test_without_mail_a_new_address_takes_effect_at_once(settings: Settings) -> None:
    async with serve(change(settings, mail=False)) as service:
        ann = await sign_up(service.client)

        response = await service.client.patch("/users/me", headers=ann.auth, json={"email": "new@example.com"})
        missing = await request_reset(service.client)
        async with AsyncSession(service.state["engine"]) as session:
            assert (await session.scalars(select(User.email))).all() == ["new@example.com"]

    assert (response.json()["email"], response.json()["pending_email"]) == ("new@example.com", None)
    assert missing.status_code == 404
