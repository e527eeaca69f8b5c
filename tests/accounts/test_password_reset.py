"""Password reset: the user sets a new password through the link in an email."""

import asyncio
import re
from base64 import urlsafe_b64decode
from datetime import timedelta
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
import pytest
import structlog
from processes import free_port
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import PREFIX
from app.accounts.models import AccountToken
from app.accounts.service import VerifiedToken
from app.database import Base, utc_now
from app.mail.message import Content
from app.mail.models import Mail
from app.settings import Settings
from app.users.models import Login, User
from tests.accounts.conftest import (
    CHANGE,
    NEW_PASSWORD,
    PUBLIC_URL,
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
from tests.conftest import SECRET_KEY, Service, change, serve, wait_for_blocked_statement
from tests.people import PASSWORD, log_in, register, sign_up, sign_up_superuser
from tests.smtp_server import MailServer, html_of, text_of

ACCEPTED = {"status": "accepted"}
INVALID = {"error": "The link is not valid any more, request another one", "type": "validation_error"}


async def test_link_sets_the_password_and_ends_every_login(client: httpx.AsyncClient, mails: MailServer) -> None:
    ann = await sign_up(client)
    asked = await request_reset(client)

    done = await reset(client, await token_from(mails, RESET))

    assert (asked.status_code, asked.json()) == (202, ACCEPTED)
    assert (done.status_code, done.content) == (204, b"")
    assert (await client.get("/users/me", headers=ann.auth)).status_code == 401
    assert (await client.post("/auth/refresh", json={"refresh_token": ann.refresh_token})).status_code == 401
    assert (await log_in(client)).status_code == 401
    tokens = (await log_in(client, password=NEW_PASSWORD)).json()  # works even in the same second as the reset
    me = await client.get("/users/me", headers={"Authorization": f"Bearer {tokens['access_token']}"})
    assert (me.status_code, me.json()["email_verified"]) == (200, True)
    notice = await mails.wait_for("Your password was changed")
    assert "#token=" not in text_of(notice)


async def test_mail_contains_the_link_as_text_and_html_and_nothing_that_a_user_entered(
    client: httpx.AsyncClient, mails: MailServer
) -> None:
    await register(client, fields={"full_name": "Buy <b>now</b>: https://spam.example"})
    # The link must not be built from the Host header, which an attacker can choose.
    await client.post(
        "/auth/password-reset",
        json={"email": "ann@example.com"},
        headers={"Host": "evil.example", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"},
    )

    mail = await mails.wait_for(RESET)

    token = await token_from(mails, RESET)
    link = f"{PUBLIC_URL}{PREFIX}/account/password-reset#token={token}"
    assert f"\n{link}\n" in text_of(mail)
    assert f"\n{token}\n" in text_of(mail)
    url = f"{PUBLIC_URL}{PREFIX}/auth/password-reset/confirm"
    assert f"The link works once, for 1 hour. Without a browser, send its token to POST {url}:" in text_of(mail)
    assert f'<a href="{link}">{link}</a>' in html_of(mail)
    assert set(re.findall(r"https?://[^\s<\"]+[^\s<\":]", text_of(mail) + html_of(mail))) == {link, url}
    for word in ("evil", "spam", "Buy"):
        assert word not in mail.as_string()
    page = await client.get(urlsplit(link).path.removeprefix(f"/api{PREFIX}"))
    assert page.status_code == 200
    assert mail["From"] == "Example <no-reply@example.org>"
    assert mail["Auto-Submitted"] == "auto-generated"


async def test_link_leads_to_the_configured_page(settings: Settings, mails: MailServer) -> None:
    page = "https://www.example.org/reset?lang=en"
    async with serve(change(settings, password_reset_url=page, password_reset_minutes=1)) as service:
        await register(service.client)
        await request_reset(service.client)

        mail = await mails.wait_for(RESET)

    assert f"\n{page}#token=" in text_of(mail)
    assert "once, for 1 minute." in text_of(mail)


@pytest.mark.parametrize("kind", ["unknown", "inactive", "look-alike"])
async def test_response_is_the_same_if_no_mail_is_sent(
    client: httpx.AsyncClient, session: AsyncSession, mails: MailServer, kind: str
) -> None:
    """In the look-alike address, a dotless i (U+0131) replaces the i.

    Both letters become `I` in upper case, so a case-insensitive comparison may treat them as equal.
    """
    await register(client, "mike@example.com")
    if kind == "inactive":
        await session.execute(update(User).values(is_active=False))
        await session.commit()
    email = {"unknown": "bob@example.com", "inactive": "mike@example.com", "look-alike": "m\u0131ke@example.com"}[kind]

    response = await request_reset(client, email)
    await wait_until_outbox_is_empty(session)

    assert (response.status_code, response.json()) == (202, ACCEPTED)
    assert RESET not in [mail["Subject"] for mail in mails.mails]
    assert not (await session.scalars(select(AccountToken).where(AccountToken.purpose == "password_reset"))).all()


async def test_unavailable_mail_server_changes_only_readiness(
    settings: Settings, mails: MailServer, logs: list[structlog.typing.EventDict]
) -> None:
    async with serve(settings) as service:
        await register(service.client)
        await mails.wait_for(VERIFICATION)
        ready = await service.client.get("/health/ready")
    async with serve(change(settings, smtp_url=f"smtp://127.0.0.1:{free_port()}")) as service:
        responses = [await request_reset(service.client, f"{name}@example.com") for name in ("ann", "bob", "ann")]
        while "the mail server is unavailable: mails wait" not in [entry["event"] for entry in logs]:  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0.01)
        unavailable = await service.client.get("/health/ready")

    assert {(response.status_code, response.text) for response in responses} == {(202, '{"status":"accepted"}')}
    assert (ready.status_code, ready.json()["mail"]) == (200, "available")
    assert (unavailable.status_code, unavailable.json()["mail"]) == (200, "unavailable")


async def test_mail_goes_to_the_stored_address_regardless_of_case(client: httpx.AsyncClient, mails: MailServer) -> None:
    await register(client, "Ann@Example.com")

    await request_reset(client, "ANN@EXAMPLE.COM")

    mail = await mails.wait_for(RESET, "ann@example.com")
    assert mail["To"] == "ann@example.com"


async def test_mails_beyond_the_recipient_limit_are_dropped_without_an_error(
    settings: Settings, mails: MailServer, logs: list[structlog.typing.EventDict]
) -> None:
    async with serve(change(settings, rate_limit_recipient="3/hour")) as service:
        await register(service.client)
        responses = [await request_reset(service.client) for _ in range(5)]
        responses += [await request_reset(service.client, "bob@example.com") for _ in range(5)]
        await request_verification(service.client)  # another kind of email has its own limit
        await mails.wait_for(VERIFICATION, number=2)
        async with AsyncSession(service.state["engine"]) as session:
            await wait_until_outbox_is_empty(session)

    assert {(response.status_code, response.text) for response in responses} == {(202, '{"status":"accepted"}')}
    assert len([mail for mail in mails.mails if mail["Subject"] == RESET]) <= 3
    assert [entry["kind"] for entry in logs if "too many" in entry["event"]] == ["password_reset"] * 2


async def test_requests_are_limited_by_client_before_the_account_is_looked_up(settings: Settings) -> None:
    async with serve(change(settings, rate_limit_mail="2/minute")) as service:
        await register(service.client)

        statuses = [
            (await request_reset(service.client, email)).status_code
            for email in ("ann@example.com", "bob@example.com", "ann@example.com", "bob@example.com")
        ]

    assert statuses == [202, 202, 429, 429]


async def test_token_works_once(client: httpx.AsyncClient, mails: MailServer) -> None:
    await register(client)
    await request_reset(client)
    token = await token_from(mails, RESET)

    first, second = await reset(client, token), await reset(client, token, "a third password")

    assert first.status_code == 204
    assert (second.status_code, second.json()) == (400, INVALID)
    assert (await log_in(client, password=NEW_PASSWORD)).status_code == 200


async def test_concurrent_uses_of_a_token_set_one_password(
    client: httpx.AsyncClient, session: AsyncSession, database_url: str, mails: MailServer
) -> None:
    await register(client)
    await request_reset(client)
    token = await token_from(mails, RESET)
    passwords = [f"new password {number}" for number in range(3)]

    requests = [reset(client, token, password) for password in passwords]
    responses = await run_at_once(session, database_url, *requests)

    statuses = [response.status_code for response in responses]
    assert sorted(statuses) == [204, 400, 400]
    assert (await log_in(client, password=passwords[statuses.index(204)])).status_code == 200


async def test_weak_password_leaves_the_token_valid(client: httpx.AsyncClient, mails: MailServer) -> None:
    await register(client)
    await request_reset(client)
    token = await token_from(mails, RESET)

    weak = await reset(client, token, "short")

    assert weak.status_code == 422
    assert (await reset(client, token)).status_code == 204


async def test_newer_link_makes_an_older_one_invalid(client: httpx.AsyncClient, mails: MailServer) -> None:
    await register(client)
    await request_reset(client)
    older = await token_from(mails, RESET)
    await request_reset(client)
    newer = await token_from(mails, RESET, number=2)

    assert newer != older
    assert (await reset(client, older)).status_code == 400
    assert (await reset(client, newer)).status_code == 204


async def test_mail_whose_link_was_used_is_not_sent_again(
    client: httpx.AsyncClient, session: AsyncSession, mails: MailServer
) -> None:
    """If a worker is killed after sending an email but before deleting it, the email stays in the outbox.

    The email is then sent again, but not if its link has been used.
    """
    await register(client)
    await request_reset(client)
    await reset(client, await token_from(mails, RESET))
    await wait_until_outbox_is_empty(session)
    token = (await session.scalars(select(AccountToken).where(AccountToken.purpose == "password_reset"))).one()
    session.add(Mail(id=token.token_id, kind="password_reset", recipient="ann@example.com", context={}))
    await session.commit()

    await wait_until_outbox_is_empty(session)

    assert [mail["Subject"] for mail in mails.mails].count(RESET) == 1


async def test_delayed_mail_is_not_sent_after_a_newer_one(
    client: httpx.AsyncClient, session: AsyncSession, mails: MailServer
) -> None:
    """A mail server may defer an email. Sending it after a newer one would invalidate the newer email's link."""
    await register(client)
    await request_reset(client)
    newer = await token_from(mails, RESET)
    earlier = utc_now() - timedelta(minutes=1)
    session.add(Mail(kind="password_reset", recipient="ann@example.com", context={}, created_at=earlier))
    await session.commit()

    await wait_until_outbox_is_empty(session)

    assert [mail["Subject"] for mail in mails.mails].count(RESET) == 1
    assert (await reset(client, newer)).status_code == 204


@pytest.mark.parametrize("end", ["password change", "deactivation", "deletion", "change of the address", "expiry"])
async def test_change_of_the_account_invalidates_the_link(
    client: httpx.AsyncClient, session: AsyncSession, mails: MailServer, end: str
) -> None:
    root = await sign_up_superuser(client, session)
    ann = await sign_up(client)
    await request_reset(client)
    token = await token_from(mails, RESET)
    url = f"/users/{ann.id}"

    match end:
        case "password change":
            passwords = {"current_password": PASSWORD, "new_password": "a third password"}
            await client.put("/users/me/password", headers=ann.auth, json=passwords)
        case "deactivation":
            await client.patch(url, headers=root.auth, json={"is_active": False})
            await client.patch(url, headers=root.auth, json={"is_active": True})
        case "deletion":
            await client.delete(url, headers=root.auth)
        case "change of the address":
            await client.patch(url, headers=root.auth, json={"email": "new@example.com"})
        case _:
            await session.execute(update(AccountToken).values(expires_at=utc_now() - timedelta(seconds=1)))
            await session.commit()
    response = await reset(client, token)

    assert (response.status_code, response.json()) == (400, INVALID)


async def test_logout_and_refresh_leave_the_link_valid(client: httpx.AsyncClient, mails: MailServer) -> None:
    ann = await sign_up(client)
    await request_reset(client)
    token = await token_from(mails, RESET)

    await client.post("/auth/refresh", json={"refresh_token": ann.refresh_token})
    await client.delete("/auth/sessions", headers=ann.auth)

    assert (await reset(client, token)).status_code == 204


async def test_token_for_another_purpose_is_invalid(client: httpx.AsyncClient, mails: MailServer) -> None:
    await register(client)
    await request_reset(client)
    for_reset, for_verification = await token_from(mails, RESET), await token_from(mails, VERIFICATION)

    assert (await reset(client, for_verification)).status_code == 400
    assert (await verify(client, for_reset, PASSWORD)).status_code == 400
    assert (await verify(client, for_verification, PASSWORD)).status_code == 204
    assert (await reset(client, for_reset)).status_code == 204


async def test_forged_tokens_are_invalid(client: httpx.AsyncClient, mails: MailServer) -> None:
    await register(client)
    await request_reset(client)
    token = await token_from(mails, RESET)
    other_signature = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")

    for forged in ("", "x", "é", token[:24], token[:-4], token + token, other_signature, "A" * 64, "A" * 256):
        response = await reset(client, forged)

        assert (response.status_code, response.json()) == (400, INVALID), forged
    assert (await reset(client, "A" * 257)).status_code == 422
    assert (await reset(client, token)).status_code == 204


async def test_reset_cancels_a_pending_change_of_the_address(
    client: httpx.AsyncClient, session: AsyncSession, mails: MailServer
) -> None:
    """Before the reset, an intruder may have requested that the account's email address be changed to their own."""
    ann = await sign_up(client)
    await client.patch("/users/me", headers=ann.auth, json={"email": "thief@example.com"})
    token = await token_from(mails, CHANGE, "thief@example.com")
    await request_reset(client)

    await reset(client, await token_from(mails, RESET))

    assert (await verify(client, token, NEW_PASSWORD)).status_code == 400
    user = (await session.scalars(select(User))).one()
    assert (user.email, user.pending_email) == ("ann@example.com", None)
    assert await mails.wait_for("A new email address was entered for your account")


async def test_refresh_during_the_reset_leaves_no_login(client: httpx.AsyncClient, mails: MailServer) -> None:
    ann = await sign_up(client)
    await request_reset(client)
    token = await token_from(mails, RESET)

    async def keep_refreshing() -> list[httpx.Response]:
        responses: list[httpx.Response] = []
        refresh_token = ann.refresh_token
        while not responses or responses[-1].status_code == 200:
            responses.append(await client.post("/auth/refresh", json={"refresh_token": refresh_token}))
            refresh_token = responses[-1].json().get("refresh_token")
        return responses

    refreshing = asyncio.create_task(keep_refreshing())
    done = await reset(client, token)
    responses = await refreshing

    assert done.status_code == 204
    assert responses[-1].status_code == 401
    for response in responses[:-1]:
        auth = {"Authorization": f"Bearer {response.json()['access_token']}"}
        assert (await client.get("/users/me", headers=auth)).status_code == 401


async def test_refresh_during_password_reset_returns_no_valid_token(
    client: httpx.AsyncClient, session: AsyncSession, database_url: str, mails: MailServer
) -> None:
    ann = await sign_up(client)
    await request_reset(client)
    token = await token_from(mails, RESET)
    await wait_until_outbox_is_empty(session)

    await session.execute(select(Login.login_id).with_for_update())
    refreshing = asyncio.create_task(client.post("/auth/refresh", json={"refresh_token": ann.refresh_token}))
    await wait_for_blocked_statement(database_url)
    resetting = asyncio.create_task(reset(client, token))
    if database_url.startswith("postgresql"):  # SQLite runs transactions one after another
        await resetting
    await session.rollback()
    done, refreshed = await resetting, await refreshing

    assert done.status_code == 204
    if refreshed.status_code == 200:
        pair = refreshed.json()
        auth = {"Authorization": f"Bearer {pair['access_token']}"}
        assert (await client.get("/users/me", headers=auth)).status_code == 401
        again = await client.post("/auth/refresh", json={"refresh_token": pair["refresh_token"]})
        assert again.status_code == 401
    else:
        assert refreshed.status_code == 401


async def test_expired_tokens_are_deleted_after_a_week(
    client: httpx.AsyncClient, session: AsyncSession, mails: MailServer
) -> None:
    ages = {"bob@example.com": timedelta(days=8), "cid@example.com": timedelta(days=6)}
    for email, age in ages.items():
        await register(client, email)
        await mails.wait_for(VERIFICATION, email)
        of_user = update(AccountToken).where(AccountToken.email == email)
        await session.execute(of_user.values(expires_at=utc_now() - age))
        await session.commit()

    await register(client)
    await mails.wait_for(VERIFICATION)

    emails = select(AccountToken.email).order_by(AccountToken.email)
    assert (await session.scalars(emails)).all() == ["ann@example.com", "cid@example.com"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_link_is_sent_while_another_worker_deletes_an_expired_token_of_the_user(
    service: Service, session: AsyncSession, mails: MailServer, database_url: str
) -> None:
    for email in ("ann@example.com", "bob@example.com"):
        await register(service.client, email)
        await mails.wait_for(VERIFICATION, email)
    await wait_until_outbox_is_empty(session)
    of_ann = update(AccountToken).where(AccountToken.email == "ann@example.com")
    await session.execute(of_ann.values(expires_at=utc_now() - timedelta(days=8)))
    await session.commit()

    async def write_mail(session: AsyncSession, recipient: str) -> Content | None:
        kind = "email_verification"
        mail = Mail(id=uuid4(), kind=kind, recipient=recipient, context={}, created_at=utc_now())
        content = await service.state["outbox"].writers[kind](session, mail)
        await session.flush()
        return content

    async with AsyncSession(service.state["engine"]) as other:
        await write_mail(other, "bob@example.com")
        to_ann = asyncio.create_task(write_mail(session, "ann@example.com"))
        await wait_for_blocked_statement(database_url)
        await other.commit()
    content = await to_ann
    await session.commit()

    assert content is not None
    assert len((await session.scalars(select(AccountToken))).all()) == 2


async def test_opening_the_page_does_not_use_up_the_token(client: httpx.AsyncClient, mails: MailServer) -> None:
    """Email security scanners open links, sometimes several times, before the user does."""
    await register(client)
    await request_reset(client)
    token = await token_from(mails, RESET)

    for method in ("GET", "HEAD") * 5:
        assert (await client.request(method, f"/account/password-reset?token={token}")).status_code == 200

    assert (await reset(client, token)).status_code == 204


async def test_token_is_in_no_table_and_in_no_log(
    client: httpx.AsyncClient, session: AsyncSession, mails: MailServer, logs: list[structlog.typing.EventDict]
) -> None:
    await register(client)
    await request_reset(client)
    token = await token_from(mails, RESET)
    await wait_until_outbox_is_empty(session)

    stored = [row for table in Base.metadata.sorted_tables for row in await session.execute(select(table))]
    await session.rollback()  # on SQLite, an open transaction would block the reset
    assert (await reset(client, token)).status_code == 204

    signature = urlsafe_b64decode(token)[16:]
    for secret in (token, repr(signature), signature.hex()):
        assert secret not in repr(stored)
        assert secret not in repr(logs)
    assert "ann@example.com" not in repr(logs)
    assert [entry["kind"] for entry in logs if entry["event"] == "mail sent"][:2]


async def test_link_survives_a_change_of_the_secret_key(settings: Settings, mails: MailServer) -> None:
    async with serve(settings) as service:
        await register(service.client)
        await request_reset(service.client)
        token = await token_from(mails, RESET)

    new_key = {"secret_key": "another secret key, also of 32 bytes or more"}
    async with serve(change(settings, **new_key)) as service:
        assert (await reset(service.client, token)).status_code == 400
    async with serve(change(settings, **new_key, secret_key_previous=SECRET_KEY)) as service:
        assert (await reset(service.client, token)).status_code == 204


async def test_superuser_can_send_a_reset_link(
    client: httpx.AsyncClient, session: AsyncSession, mails: MailServer
) -> None:
    root = await sign_up_superuser(client, session)
    ann = await sign_up(client)

    response = await client.post(f"/users/{ann.id}/password-reset", headers=root.auth)

    assert (response.status_code, response.json()) == (202, ACCEPTED)
    assert (await reset(client, await token_from(mails, RESET))).status_code == 204
    assert (await client.post("/users/99/password-reset", headers=root.auth)).status_code == 404


def test_repr_of_a_verified_token_hides_the_password_hash() -> None:
    token = VerifiedToken("ann@example.com", 1, "ann@example.com", "s3cret", UUID(int=1))

    assert "ann@example.com" in repr(token)
    assert "s3cret" not in repr(token)
    assert str(UUID(int=1)) not in repr(token)
