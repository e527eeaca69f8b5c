"""What superusers can do with everybody."""

import asyncio
from collections.abc import Awaitable, Callable

import anyio
import httpx
import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.lifespan import State
from app.users import service
from app.users.models import User
from app.users.schemas import UserUpdate
from tests.conftest import wait_for_blocked_statement
from tests.people import Person, log_in, register, sign_up, sign_up_superuser


async def test_superusers_read_everybody_and_others_themselves(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    root, ann, bob = (
        await sign_up_superuser(client, session),
        await sign_up(client),
        await sign_up(client, "bob@example.com"),
    )

    async def status(caller: Person, user_id: int) -> int:
        return (await client.get(f"/users/{user_id}", headers=caller.auth)).status_code

    assert await status(root, ann.id) == 200
    assert await status(ann, ann.id) == 200
    assert await status(ann, bob.id) == 403
    assert await status(ann, 999) == 403  # not even whether there is one
    assert await status(root, 999) == 404


@pytest.mark.parametrize("user_id", ["0", "-1", "x", "1.5", str(2**63), "9" * 5000])
async def test_an_id_that_can_be_none_is_refused(
    client: httpx.AsyncClient, session: AsyncSession, user_id: str
) -> None:
    root = await sign_up_superuser(client, session)

    response = await client.get(f"/users/{user_id}", headers=root.auth)

    assert response.status_code == 422
    assert [detail["field"] for detail in response.json()["details"]] == ["user_id"]


async def test_superusers_change_everybody(client: httpx.AsyncClient, session: AsyncSession) -> None:
    root, ann = await sign_up_superuser(client, session), await sign_up(client)
    change = {"email": "a@example.com", "full_name": "A", "is_superuser": True}

    response = await client.patch(f"/users/{ann.id}", headers=root.auth, json=change)

    assert response.status_code == 200
    assert change.items() <= response.json().items()
    assert (await client.get("/users/", headers=ann.auth)).status_code == 200


async def test_a_deactivated_user_is_out_at_once_and_for_good(client: httpx.AsyncClient, session: AsyncSession) -> None:
    root, ann = await sign_up_superuser(client, session), await sign_up(client)

    await client.patch(f"/users/{ann.id}", headers=root.auth, json={"is_active": False})

    assert (await client.get("/users/me", headers=ann.auth)).status_code == 401
    assert (await log_in(client)).status_code == 401
    await client.patch(f"/users/{ann.id}", headers=root.auth, json={"is_active": True})
    assert (await client.post("/auth/refresh", json={"refresh_token": ann.refresh_token})).status_code == 401
    assert (await log_in(client)).status_code == 200


async def test_superusers_delete_everybody(client: httpx.AsyncClient, session: AsyncSession) -> None:
    root, ann = await sign_up_superuser(client, session), await sign_up(client)

    response = await client.delete(f"/users/{ann.id}", headers=root.auth)

    assert (response.status_code, response.content) == (204, b"")
    assert (await client.get("/users/me", headers=ann.auth)).status_code == 401
    assert (await client.delete(f"/users/{ann.id}", headers=root.auth)).status_code == 404
    assert (await client.patch(f"/users/{ann.id}", headers=root.auth, json={"full_name": "A"})).status_code == 404
    assert (await client.patch(f"/users/{ann.id}", headers=root.auth, json={})).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/users/"), ("PATCH", "/users/1"), ("DELETE", "/users/1"), ("GET", "/users/1")]
)
async def test_others_do_not(client: httpx.AsyncClient, method: str, path: str) -> None:
    await sign_up(client, "first@example.com")
    ann = await sign_up(client)

    response = await client.request(method, path, headers=ann.auth, json={} if method == "PATCH" else None)

    assert response.status_code == 403
    assert response.json() == {"error": "Not allowed", "type": "permission_error"}


# The last active superuser -----------------------------------------------------------------------------------------

Removal = Callable[[httpx.AsyncClient, Person, int], Awaitable[httpx.Response]]


async def _delete(client: httpx.AsyncClient, caller: Person, user_id: int) -> httpx.Response:
    return await client.delete(f"/users/{user_id}", headers=caller.auth)


async def _demote(client: httpx.AsyncClient, caller: Person, user_id: int) -> httpx.Response:
    return await client.patch(f"/users/{user_id}", headers=caller.auth, json={"is_superuser": False})


async def _deactivate(client: httpx.AsyncClient, caller: Person, user_id: int) -> httpx.Response:
    return await client.patch(f"/users/{user_id}", headers=caller.auth, json={"is_active": False})


removals = pytest.mark.parametrize("remove", [_delete, _demote, _deactivate])


@removals
async def test_the_last_superuser_stays(client: httpx.AsyncClient, session: AsyncSession, remove: Removal) -> None:
    root = await sign_up_superuser(client, session)
    inactive = await sign_up_superuser(client, session, "inactive@example.com")
    assert (await _deactivate(client, root, inactive.id)).status_code == 200

    response = await remove(client, root, root.id)

    assert response.status_code == 409
    assert response.json() == {
        "error": "The last active superuser cannot be deleted, deactivated or demoted",
        "type": "conflict",
    }
    assert (await client.get("/users/", headers=root.auth)).status_code == 200


@removals
async def test_of_two_superusers_who_remove_each_other_one_stays(
    client: httpx.AsyncClient, session: AsyncSession, remove: Removal
) -> None:
    for attempt in range(5):
        pair = [await sign_up_superuser(client, session, f"{name}{attempt}@example.com") for name in "ab"]
        statuses: list[int] = []

        async def race(into: list[int], caller: Person, victim: Person) -> None:
            into.append((await remove(client, caller, victim.id)).status_code)

        async with anyio.create_task_group() as group:
            group.start_soon(race, statuses, pair[0], pair[1])
            group.start_soon(race, statuses, pair[1], pair[0])

        left = [person for person in pair if (await client.get("/users/", headers=person.auth)).status_code == 200]
        assert len(left) == 1, statuses
        assert sorted(statuses) in ([200, 409], [204, 409], [200, 401], [204, 401], [200, 403], [204, 403])
        await session.execute(insert(User).values(_spare(attempt)))
        await session.commit()
        assert (await _delete(client, left[0], left[0].id)).status_code == 204
        await session.execute(delete(User))
        await session.commit()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_superusers_are_locked_in_order_so_that_no_two_removals_wait_for_each_other(
    client: httpx.AsyncClient, session: AsyncSession, state: State, database_url: str
) -> None:
    """PostgreSQL by itself takes rows as they lie, which a change puts at the end."""
    first, second, third = [await sign_up_superuser(client, session, f"{name}@example.com") for name in "abc"]
    await session.execute(update(User).where(User.id == first.id).values(full_name="At the end"))
    await session.commit()

    await session.execute(select(User.id).where(User.id == first.id).with_for_update())
    removal = asyncio.create_task(_delete(client, first, third.id))
    await wait_for_blocked_statement(database_url)
    async with state["write_sessions"]() as other:
        free = set(await other.scalars(select(User.id).with_for_update(skip_locked=True)))
    await session.rollback()

    assert free == {second.id, third.id}
    assert (await removal).status_code == 204


def _spare(attempt: int) -> dict[str, object]:
    return {
        "email": f"spare{attempt}@example.com",
        "full_name": "Spare",
        "password_hash": "none",
        "is_superuser": True,
    }


# Lists -------------------------------------------------------------------------------------------------------------


async def test_pages_lead_through_all_users_newest_first(client: httpx.AsyncClient, session: AsyncSession) -> None:
    root = await sign_up_superuser(client, session)
    for number in range(6):
        await register(client, f"user{number}@example.com")

    found: list[int] = []
    url: str | None = "/users/?limit=3"
    sizes = []
    while url:
        response = await client.get(url, headers=root.auth)
        assert response.status_code == 200
        page = response.json()
        found += [user["id"] for user in page["items"]]
        sizes.append(len(page["items"]))
        url = response.links["next"]["url"] if page["next_cursor"] else None
        assert (url is None) == ("link" not in response.headers)

    assert sizes == [3, 3, 1]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 7


@pytest.mark.parametrize("path", ["/users/", "/users/%0A"])  # a route's pattern ends before a line feed, too
async def test_the_link_keeps_the_other_parameters(path: str, client: httpx.AsyncClient, session: AsyncSession) -> None:
    root = await sign_up_superuser(client, session)
    await register(client)

    response = await client.get(path, params={"limit": 1, "q": "example"}, headers=root.auth)

    cursor = response.json()["next_cursor"]
    assert response.headers["link"] == f'</users/?limit=1&q=example&cursor={cursor}>; rel="next"'


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["bob@example.com", "ann@example.com", "root@example.com"]),
        ({"q": "ANN@"}, ["ann@example.com"]),
        ({"q": "smith"}, ["bob@example.com"]),
        ({"q": "%"}, []),
        ({"q": "_"}, []),
        ({"is_active": "false"}, ["ann@example.com"]),
        ({"is_active": "true", "q": "o"}, ["bob@example.com", "root@example.com"]),
    ],
)
async def test_lists_are_searched_and_filtered(
    client: httpx.AsyncClient, session: AsyncSession, query: dict[str, str], expected: list[str]
) -> None:
    root, ann = await sign_up_superuser(client, session), await sign_up(client)
    await register(client, "bob@example.com", fields={"full_name": "Bob Smith"})
    await _deactivate(client, root, ann.id)

    response = await client.get("/users/", params=query, headers=root.auth)

    assert [user["email"] for user in response.json()["items"]] == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", "0"),
        ("limit", "101"),
        ("limit", "x"),
        ("cursor", "hunter2"),
        ("cursor", "é"),
        ("cursor", "MQ=="),
        ("cursor", service.encode_cursor(2**63)),
        ("cursor", service.encode_cursor(0)),
        ("cursor", "x" * 10_000),
        ("q", ""),
        ("q", "\x00"),
        ("q", "x" * 300),
        ("is_active", "perhaps"),
    ],
)
async def test_a_bad_parameter_is_named_and_not_repeated(
    client: httpx.AsyncClient, session: AsyncSession, name: str, value: str
) -> None:
    root = await sign_up_superuser(client, session)

    response = await client.get("/users/", params={name: value}, headers=root.auth)

    assert response.status_code == 422
    assert [detail["field"] for detail in response.json()["details"]] == [name]
    assert "hunter2" not in response.text


async def test_a_refusal_other_than_of_a_double_address_is_a_bug(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    ann = await sign_up(client)
    upper_case = UserUpdate.model_construct({"email"}, email="ANN@EXAMPLE.COM")

    with pytest.raises(IntegrityError):
        await service.update_user(session, ann.id, upper_case)
