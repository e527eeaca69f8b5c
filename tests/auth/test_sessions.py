"""Sessions: users list and end their own logins, and superusers list and end the logins of any user."""

import itertools
from datetime import timedelta
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import event, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import utc_now
from app.lifespan import State
from app.users.models import Login
from tests.people import PASSWORD, Person, sign_up, sign_up_superuser

LOGIN = {"email": "ann@example.com", "password": PASSWORD}


async def log_in_with(client: httpx.AsyncClient, user_agent: str) -> Person:
    """Log in as Ann with this User-Agent header."""
    # The service must ignore X-Forwarded-For, because the client is not a trusted proxy.
    headers = {"User-Agent": user_agent, "X-Forwarded-For": "203.0.113.7"}
    tokens = (await client.post("/auth/login", json=LOGIN, headers=headers)).json()
    return Person(1, "ann@example.com", tokens["access_token"], tokens["refresh_token"])


async def sessions(client: httpx.AsyncClient, person: Person, path: str = "/auth/sessions") -> list[dict[str, object]]:
    response = await client.get(path, headers=person.auth)
    assert response.status_code == 200, response.text
    items: list[dict[str, object]] = response.json()["items"]
    return items


async def is_logged_in(client: httpx.AsyncClient, person: Person) -> bool:
    """Return whether both tokens of the login are valid. Fail if only one of them is."""
    access = (await client.get("/users/me", headers=person.auth)).status_code
    refresh = (await client.post("/auth/refresh", json={"refresh_token": person.refresh_token})).status_code
    assert access == refresh
    return access == 200


async def test_list_shows_each_login_and_no_secret(client: httpx.AsyncClient) -> None:
    phone = await sign_up(client)
    laptop = await log_in_with(client, "Laptop/1.0")

    response = await client.get("/auth/sessions", headers=laptop.auth)

    first, second = response.json()["items"]
    assert first.keys() == {
        "id", "created_at", "last_used_at", "expires_at", "ip_address", "user_agent", "is_current",
    }  # fmt: skip
    assert (first["user_agent"], first["ip_address"], first["is_current"]) == ("Laptop/1.0", "127.0.0.1", True)
    assert (second["user_agent"].startswith("python-httpx"), second["is_current"]) == (True, False)
    assert first["created_at"] == first["last_used_at"] < first["expires_at"]
    for token in (phone.refresh_token, laptop.refresh_token):
        assert token not in response.text


async def test_refresh_updates_the_time_of_last_use(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)
    pair = (await client.post("/auth/refresh", json={"refresh_token": ann.refresh_token})).json()

    (session,) = await sessions(client, ann)

    assert str(session["last_used_at"]) > str(session["created_at"])
    assert (await client.get("/users/me", headers={"Authorization": f"Bearer {pair['access_token']}"})).is_success


async def test_requests_do_not_write_to_their_session(client: httpx.AsyncClient, state: State) -> None:
    ann = await sign_up(client)
    statements: list[str] = []
    event.listen(
        state["engine"].sync_engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2])
    )

    for _ in range(20):
        assert (await client.get("/auth/sessions", headers=ann.auth)).status_code == 200

    assert statements
    assert {statement.split()[0] for statement in statements} == {"SELECT"}


async def test_ended_session_stops_working_at_once(client: httpx.AsyncClient) -> None:
    phone = await sign_up(client)
    laptop = await log_in_with(client, "Laptop/1.0")
    (current,) = [session for session in await sessions(client, phone) if session["is_current"]]

    response = await client.delete(f"/auth/sessions/{current['id']}", headers=laptop.auth)
    again = await client.delete(f"/auth/sessions/{current['id']}", headers=laptop.auth)

    assert (response.status_code, response.content) == (204, b"")
    assert (again.status_code, again.json()) == (404, {"error": "Session not found", "type": "not_found"})
    assert not await is_logged_in(client, phone)
    assert await is_logged_in(client, laptop)


async def test_logout_ends_the_access_token_too(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)

    await client.post("/auth/logout", json={"refresh_token": ann.refresh_token})

    assert not await is_logged_in(client, ann)


async def test_ending_other_sessions_keeps_the_current_one(client: httpx.AsyncClient) -> None:
    phone = await sign_up(client)
    laptop = await log_in_with(client, "Laptop/1.0")
    bob = await sign_up(client, "bob@example.com")

    response = await client.delete("/auth/sessions", headers=laptop.auth)

    assert response.status_code == 204
    assert [session["is_current"] for session in await sessions(client, laptop)] == [True]
    assert not await is_logged_in(client, phone)
    assert await is_logged_in(client, laptop)
    assert await is_logged_in(client, bob)


async def test_session_of_another_user_returns_404(client: httpx.AsyncClient) -> None:
    ann, bob = await sign_up(client), await sign_up(client, "bob@example.com")
    (session,) = await sessions(client, ann)

    response = await client.delete(f"/auth/sessions/{session['id']}", headers=bob.auth)

    assert response.status_code == 404
    assert await is_logged_in(client, ann)


@pytest.mark.parametrize("session_id", ["1", "me", "0" * 33, "%00"])
async def test_malformed_id_returns_422(client: httpx.AsyncClient, session_id: str) -> None:
    ann = await sign_up(client)

    response = await client.delete(f"/auth/sessions/{session_id}", headers=ann.auth)

    assert response.status_code == 422
    assert response.json()["details"] == [{"field": "session_id", "message": "Not a valid UUID"}]


async def test_expired_and_ended_logins_are_not_listed(client: httpx.AsyncClient, session: AsyncSession) -> None:
    ann = await sign_up(client)
    await log_in_with(client, "Expired/1.0")
    await log_in_with(client, "Ended/1.0")
    expired, ended = (update(Login).where(Login.user_agent == name) for name in ("Expired/1.0", "Ended/1.0"))
    await session.execute(expired.values(expires_at=utc_now() - timedelta(seconds=1)))
    await session.execute(ended.values(security_stamp=uuid4()))
    await session.commit()

    assert [item["is_current"] for item in await sessions(client, ann)] == [True]


async def test_superuser_sees_and_ends_the_sessions_of_a_user(client: httpx.AsyncClient, session: AsyncSession) -> None:
    ann, root = await sign_up(client), await sign_up_superuser(client, session)
    laptop, tablet = await log_in_with(client, "Laptop/1.0"), await log_in_with(client, "Tablet/1.0")
    path = f"/users/{ann.id}/sessions"

    items = await sessions(client, root, path)
    (laptop_id,) = [item["id"] for item in items if item["user_agent"] == "Laptop/1.0"]
    one = await client.delete(f"{path}/{laptop_id}", headers=root.auth)
    logged_in = [await is_logged_in(client, person) for person in (laptop, tablet)]
    wrong_user = await client.delete(f"/users/{root.id}/sessions/{items[0]['id']}", headers=root.auth)
    all_of_them = await client.delete(path, headers=root.auth)

    assert [item["is_current"] for item in items] == [False] * 3
    assert (one.status_code, wrong_user.status_code, all_of_them.status_code) == (204, 404, 204)
    assert logged_in == [False, True]
    assert not await is_logged_in(client, tablet)
    assert await is_logged_in(client, root)
    assert [item["is_current"] for item in await sessions(client, root, f"/users/{root.id}/sessions")] == [True]
    await client.delete(f"/users/{ann.id}", headers=root.auth)
    for user_id, method in itertools.product((ann.id, 99), ("GET", "DELETE")):
        assert (await client.request(method, f"/users/{user_id}/sessions", headers=root.auth)).status_code == 404


USER_AGENTS = {
    "long": (b"a" * 5000, "a" * 256),
    "control characters": (b"a\tb\x7fc", "abc"),
    "not ASCII": ("Möbel".encode("latin-1"), "Möbel"),
    "empty": (b"", ""),
}


@pytest.mark.parametrize("name", USER_AGENTS)
async def test_any_user_agent_is_stored(client: httpx.AsyncClient, session: AsyncSession, name: str) -> None:
    sent, stored = USER_AGENTS[name]
    await sign_up(client)

    response = await client.post("/auth/login", json=LOGIN, headers={b"User-Agent": sent})

    assert response.status_code == 200
    assert stored in (await session.scalars(select(Login.user_agent))).all()
