"""User administration by superusers."""

import asyncio
from collections.abc import Awaitable, Callable

import anyio
import httpx
import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.lifespan import State
from app.settings import Settings
from app.users import service
from app.users.models import User
from app.users.schemas import UserUpdate
from tests.conftest import serve, wait_for_blocked_statement
from tests.people import Person, log_in, sign_up, sign_up_superuser


async def test_superuser_gets_any_user_others_only_themselves(client: httpx.AsyncClient, session: AsyncSession) -> None:
    root = await sign_up_superuser(client, session)
    ann, bob = await sign_up(client), await sign_up(client, "bob@example.com")

    async def status(caller: Person, user_id: int) -> int:
        return (await client.get(f"/users/{user_id}", headers=caller.auth)).status_code

    assert await status(root, ann.id) == 200
    assert await status(ann, ann.id) == 200
    assert await status(ann, bob.id) == 403
    assert await status(ann, 999) == 403  # the same status as for an existing id
    assert await status(root, 999) == 404


@pytest.mark.parametrize("user_id", ["0", "-1", "x", "1.5", str(2**63), "9" * 5000])
async def test_invalid_user_id_returns_422(client: httpx.AsyncClient, session: AsyncSession, user_id: str) -> None:
    root = await sign_up_superuser(client, session)

    response = await client.get(f"/users/{user_id}", headers=root.auth)

    assert response.status_code == 422
    assert [detail["field"] for detail in response.json()["details"]] == ["user_id"]


async def test_superuser_updates_another_user(client: httpx.AsyncClient, session: AsyncSession) -> None:
    root, ann = await sign_up_superuser(client, session), await sign_up(client)
    changes = {"email": "a@example.com", "full_name": "A", "is_superuser": True}

    response = await client.patch(f"/users/{ann.id}", headers=root.auth, json=changes)

    assert response.status_code == 200
    assert changes.items() <= response.json().items()
    assert (await client.get("/users/", headers=ann.auth)).status_code == 200


async def test_deactivation_ends_every_login(client: httpx.AsyncClient, session: AsyncSession) -> None:
    root, ann = await sign_up_superuser(client, session), await sign_up(client)

    await client.patch(f"/users/{ann.id}", headers=root.auth, json={"is_active": False})

    assert (await client.get("/users/me", headers=ann.auth)).status_code == 401
    assert (await log_in(client)).status_code == 401
    await client.patch(f"/users/{ann.id}", headers=root.auth, json={"is_active": True})
    assert (await client.post("/auth/refresh", json={"refresh_token": ann.refresh_token})).status_code == 401
    assert (await log_in(client)).status_code == 200


async def test_superuser_deletes_another_user(client: httpx.AsyncClient, session: AsyncSession) -> None:
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
async def test_administration_by_ordinary_user_returns_403(client: httpx.AsyncClient, method: str, path: str) -> None:
    await sign_up(client, "first@example.com")
    ann = await sign_up(client)

    response = await client.request(method, path, headers=ann.auth, json={} if method == "PATCH" else None)

    assert response.status_code == 403
    assert response.json() == {"error": "Not allowed", "type": "permission_error"}


async def test_integrity_error_other_than_duplicate_email_is_raised(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    ann = await sign_up(client)
    upper_case = UserUpdate.model_construct({"email"}, email="ANN@EXAMPLE.COM")

    with pytest.raises(IntegrityError):
        await service.update_user(session, ann.id, upper_case)


# The last active superuser -----------------------------------------------------------------------------------------

RemoveSuperuser = Callable[[httpx.AsyncClient, Person, int], Awaitable[httpx.Response]]


async def delete_user(client: httpx.AsyncClient, caller: Person, user_id: int) -> httpx.Response:
    return await client.delete(f"/users/{user_id}", headers=caller.auth)


async def demote(client: httpx.AsyncClient, caller: Person, user_id: int) -> httpx.Response:
    return await client.patch(f"/users/{user_id}", headers=caller.auth, json={"is_superuser": False})


async def deactivate(client: httpx.AsyncClient, caller: Person, user_id: int) -> httpx.Response:
    return await client.patch(f"/users/{user_id}", headers=caller.auth, json={"is_active": False})


every_removal = pytest.mark.parametrize("remove", [delete_user, demote, deactivate])


@every_removal
async def test_removing_last_superuser_returns_409(
    client: httpx.AsyncClient, session: AsyncSession, remove: RemoveSuperuser
) -> None:
    root = await sign_up_superuser(client, session)
    inactive = await sign_up_superuser(client, session, "inactive@example.com")
    assert (await deactivate(client, root, inactive.id)).status_code == 200

    response = await remove(client, root, root.id)

    assert response.status_code == 409
    assert response.json() == {
        "error": "The last active superuser cannot be deleted, deactivated or demoted",
        "type": "conflict",
    }
    assert (await client.get("/users/", headers=root.auth)).status_code == 200


@every_removal
async def test_superusers_removing_each_other_leave_one(
    client: httpx.AsyncClient, session: AsyncSession, remove: RemoveSuperuser
) -> None:
    for attempt in range(5):
        pair = [await sign_up_superuser(client, session, f"{name}{attempt}@example.com") for name in "ab"]
        statuses: list[int] = []

        async def remove_other(statuses: list[int], caller: Person, other: Person) -> None:
            statuses.append((await remove(client, caller, other.id)).status_code)

        async with anyio.create_task_group() as group:
            group.start_soon(remove_other, statuses, pair[0], pair[1])
            group.start_soon(remove_other, statuses, pair[1], pair[0])

        remaining = [person for person in pair if (await client.get("/users/", headers=person.auth)).status_code == 200]
        assert len(remaining) == 1, statuses
        assert sorted(statuses) in ([200, 409], [204, 409], [200, 401], [204, 401], [200, 403], [204, 403])
        # Add another superuser, because the only remaining one cannot be deleted.
        spare = {
            "email": f"spare{attempt}@example.com",
            "full_name": "Spare",
            "password_hash": "",
            "is_superuser": True,
        }
        await session.execute(insert(User).values(spare))
        await session.commit()
        assert (await delete_user(client, remaining[0], remaining[0].id)).status_code == 204
        await session.execute(delete(User))
        await session.commit()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_superusers_are_locked_in_id_order(
    client: httpx.AsyncClient, session: AsyncSession, state: State, database_url: str
) -> None:
    """If concurrent removals locked the superusers in different orders, they could deadlock.

    Without ORDER BY, PostgreSQL locks rows in their physical order, which changes with every update.
    """
    first, second, third = [await sign_up_superuser(client, session, f"{name}@example.com") for name in "abc"]
    await session.execute(update(User).where(User.id == first.id).values(full_name="Physically last"))
    await session.commit()

    await session.execute(select(User.id).where(User.id == first.id).with_for_update())
    removal = asyncio.create_task(delete_user(client, first, third.id))
    await wait_for_blocked_statement(database_url)
    async with AsyncSession(state["engine"]) as other:
        unlocked = set(await other.scalars(select(User.id).with_for_update(skip_locked=True)))
    await session.rollback()

    assert unlocked == {second.id, third.id}
    assert (await removal).status_code == 204


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@every_removal
async def test_removing_an_ordinary_user_does_not_wait_for_superusers(
    settings: Settings, session: AsyncSession, remove: RemoveSuperuser
) -> None:
    async with serve(settings) as service:
        root, ann = await sign_up_superuser(service.client, session), await sign_up(service.client)
        await session.execute(select(User.id).where(User.id == root.id).with_for_update())

        response = await remove(service.client, root, ann.id)

    assert response.is_success
