"""Projects: members, filters, pages, documents, events, chat and reports."""

import json
from hashlib import sha256
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from app import PREFIX
from app.projects.models import Member
from app.projects.router import DOCUMENT_SIZE
from app.settings import Settings
from app.users.models import User
from tests.conftest import change, serve
from tests.people import Person, sign_up, sign_up_superuser
from tests.websocket_client import open_websocket


async def create_project(client: httpx.AsyncClient, owner: Person, **fields: object) -> httpx.Response:
    data: dict[str, object] = {
        "key": str(uuid4()),
        "name": "Moon landing",
        "status": "planned",
        "starts_on": "2027-01-31",
        "budget": "1500.50",
        "tags": ["space", "moon"],
    }
    return await client.post("/projects/", json=data | fields, headers=owner.auth)


async def test_created_project_is_returned_with_its_owner(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)
    key = str(uuid4())

    created = await create_project(client, ann, key=key)
    read = await client.get(created.headers["location"].removeprefix(PREFIX), headers=ann.auth)

    assert (created.status_code, read.status_code) == (201, 200)
    assert read.json() == created.json()
    member = created.json()["members"][0]
    assert (member["user_id"], member["role"], member["notified_at"]) == (ann.id, "owner", None)
    assert (
        created.json().items()
        >= {
            "key": key,
            "status": "planned",
            "starts_on": "2027-01-31",
            "budget": "1500.5",
            "tags": ["moon", "space"],
        }.items()
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key", "1"),
        ("key", 1),
        ("status", "PLANNED"),
        ("starts_on", "31.1.2027"),
        ("budget", "1.505"),
        ("budget", "-1"),
        ("tags", "space"),
        ("tags", [1]),
        ("name", " "),
        ("color", 1),
    ],
)
async def test_invalid_field_returns_422(client: httpx.AsyncClient, field: str, value: object) -> None:
    ann = await sign_up(client)

    response = await create_project(client, ann, **{field: value})

    assert response.status_code == 422
    assert response.json()["details"][0]["field"].startswith(field)


async def test_key_of_another_project_returns_409(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)
    key = str(uuid4())

    responses = [await create_project(client, ann, key=key) for _ in range(2)]

    assert [response.status_code for response in responses] == [201, 409]
    assert responses[1].json() == {"error": "The key is taken", "type": "conflict"}


async def test_pages_contain_every_project_newest_first(client: httpx.AsyncClient) -> None:
    ann, bob = await sign_up(client), await sign_up(client, "bob@example.com")
    created = [(await create_project(client, ann)).json()["id"] for _ in range(5)]
    await create_project(client, bob)

    ids: list[int] = []
    url: str | None = "/projects/?limit=2"
    while url:
        response = await client.get(url, headers=ann.auth)
        ids += [project["id"] for project in response.json()["items"]]
        url = response.links["next"]["url"].removeprefix(PREFIX) if "link" in response.headers else None

    assert ids == created[::-1]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, [3, 2, 1]),
        ({"status": "active"}, [2]),
        ({"starts_after": "2027-01-31"}, [3]),
        ({"min_budget": "0.02"}, [3, 1]),
        ({"key": "00000000-0000-0000-0000-000000000002"}, [2]),
        ({"key": str(uuid4())}, []),
    ],
)
async def test_filters_combine_types_of_the_query(
    client: httpx.AsyncClient, query: dict[str, str], found: list[int]
) -> None:
    ann = await sign_up(client)
    await create_project(client, ann)
    key = "00000000-0000-0000-0000-000000000002"
    await create_project(client, ann, key=key, status="active", budget="0.01")
    await create_project(client, ann, starts_on="2027-02-01")

    response = await client.get("/projects/", params=query, headers=ann.auth)

    assert [project["id"] for project in response.json()["items"]] == found


@pytest.mark.parametrize("query", [{"status": "x"}, {"starts_after": "x"}, {"min_budget": "x"}, {"key": "x"}])
async def test_invalid_filter_returns_422(client: httpx.AsyncClient, query: dict[str, str]) -> None:
    ann = await sign_up(client)

    assert (await client.get("/projects/", params=query, headers=ann.auth)).status_code == 422


async def test_staff_sees_every_project(client: httpx.AsyncClient, session: AsyncSession) -> None:
    ann, staff = await sign_up(client), await sign_up(client, "staff@example.com")
    root = await sign_up_superuser(client, session)
    promoted = await client.patch(f"/users/{staff.id}", json={"is_staff": True}, headers=root.auth)
    await create_project(client, ann)

    responses = [await client.get("/projects/", headers=person.auth) for person in (ann, staff, root)]
    reports = [await client.get("/reports/projects", headers=person.auth) for person in (ann, staff, root)]

    assert promoted.status_code == 200
    assert [len(response.json()["items"]) for response in responses] == [1, 1, 1]
    assert [response.status_code for response in reports] == [403, 200, 200]
    assert reports[1].json() == {"planned": 1, "active": 0, "done": 0}
    assert await session.scalar(update(User).where(User.is_staff).values(is_staff=False).returning(User.id)) == staff.id


async def test_invited_user_becomes_a_member_and_is_notified(client: httpx.AsyncClient, session: AsyncSession) -> None:
    ann, bob = await sign_up(client), await sign_up(client, "bob@example.com")
    project = (await create_project(client, ann)).json()["id"]
    url = f"/projects/{project}"
    before = await client.get(url, headers=bob.auth)

    added = await client.post(f"{url}/members", json={"user_id": bob.id, "role": "member"}, headers=ann.auth)
    after = await client.get(url, headers=bob.auth)
    by_member = await client.post(f"{url}/members", json={"user_id": 99, "role": "owner"}, headers=bob.auth)

    assert [before.status_code, added.status_code, after.status_code, by_member.status_code] == [403, 201, 200, 403]
    member = await session.get(Member, (project, bob.id))
    assert member
    assert member.notified_at


@pytest.mark.parametrize(("user_id", "status"), [(1, 409), (99, 404), ("1", 422), (True, 422), (0, 422)])
async def test_impossible_invitation_returns_an_error(client: httpx.AsyncClient, user_id: Any, status: int) -> None:  # noqa: ANN401
    ann = await sign_up(client)
    await create_project(client, ann)

    response = await client.post("/projects/1/members", json={"user_id": user_id, "role": "owner"}, headers=ann.auth)

    assert response.status_code == status


async def test_invitations_have_their_own_rate_limit(settings: Settings) -> None:
    async with serve(change(settings, rate_limit_invite="1/minute")) as service:
        ann = await sign_up(service.client)
        for _ in range(2):
            await create_project(service.client, ann)
        body = {"user_id": 99, "role": "member"}

        responses = [
            await service.client.post(f"/projects/{project}/members", json=body, headers=ann.auth) for project in (1, 2)
        ]

    assert [response.status_code for response in responses] == [404, 429]


@pytest.mark.parametrize(("size", "status"), [(0, 200), (DOCUMENT_SIZE, 200), (DOCUMENT_SIZE + 1, 413)])
async def test_document_may_have_20_mib(client: httpx.AsyncClient, size: int, status: int) -> None:
    ann = await sign_up(client)
    await create_project(client, ann)
    document = b"x" * size
    headers = ann.auth | {"Content-Type": "application/octet-stream"}

    response = await client.put("/projects/1/document", content=document, headers=headers)

    assert response.status_code == status
    if status == 200:
        assert response.json() == {"size": size, "sha256": sha256(document).hexdigest()}


async def test_other_bodies_keep_the_default_limit(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)

    assert (await create_project(client, ann, name="x" * 2**20)).status_code == 413


async def test_event_stream_lists_the_members(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)
    await create_project(client, ann)

    response = await client.get("/projects/1/events", headers=ann.auth)

    assert response.headers["content-type"].startswith("text/event-stream")
    lines = dict(line.split(": ", 1) for line in response.text.strip().splitlines())
    assert (lines["event"], lines["id"], lines["retry"]) == ("member", str(ann.id), "5000")
    assert json.loads(lines["data"])["role"] == "owner"


async def test_account_deletion_ends_memberships(client: httpx.AsyncClient, session: AsyncSession) -> None:
    ann = await sign_up(client)
    await create_project(client, ann)

    assert (await client.delete("/users/me", headers=ann.auth)).status_code == 204
    assert await session.get(Member, (1, ann.id)) is None


async def test_chat_is_for_members_and_holds_no_database_connection(settings: Settings) -> None:
    async with serve(change(settings, database_pool_size=1)) as service:
        ann, bob = await sign_up(service.client), await sign_up(service.client, "bob@example.com")
        await create_project(service.client, ann)
        path = f"{PREFIX}/projects/1/chat"

        async with open_websocket(service, path, bob.auth) as rejected:
            assert (await rejected.receive())["status"] == 403
        async with open_websocket(service, path, ann.auth) as chat:
            accepted = await chat.receive()
            read = await service.client.get("/projects/1", headers=ann.auth)
            chat.send("hello")
            message = await chat.receive()

    assert (accepted["type"], read.status_code) == ("websocket.accept", 200)
    assert json.loads(message["text"]) == {"project": 1, "user": ann.id, "text": "hello"}
