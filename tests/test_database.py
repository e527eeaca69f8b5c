"""Sessions and connections are what the routes rely on."""

from datetime import UTC, datetime, timedelta, timezone

import httpx
import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import Message, Receive, Scope, Send

from app import NAME
from app.factory import create_app
from app.lifespan import lifespan
from app.settings import Settings
from app.state import State
from app.users.models import User
from tests.people import join, register


async def test_a_write_is_committed_before_its_response_begins(settings: Settings) -> None:
    app = create_app(settings)
    stored: list[int | None] = []
    async with lifespan(app) as state:

        async def watch(scope: Scope, receive: Receive, send: Send) -> None:
            async def count_and_send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    async with state["read_sessions"]() as session:
                        stored.append(await session.scalar(select(func.count()).select_from(User)))
                await send(message)

            await app({**scope, "state": {**state}}, receive, count_and_send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(watch), base_url="http://test") as client:
            await register(client)
            await register(client, "bob@example.com")

    assert stored == [1, 2]


async def test_what_fails_is_rolled_back(client: httpx.AsyncClient, state: State) -> None:
    ann = await join(client)
    await register(client, "bob@example.com")

    taken = await client.patch("/users/me", headers=ann.auth, json={"full_name": "A", "email": "bob@example.com"})

    assert taken.status_code == 400
    async with state["read_sessions"]() as session:
        assert (await session.get_one(User, ann.id)).full_name == "Ann"


async def test_the_server_knows_who_connects_and_for_how_long(session: AsyncSession, database_url: str) -> None:
    if database_url.startswith("sqlite"):
        mode = await session.scalar(text("PRAGMA journal_mode"))
        keys = await session.scalar(text("PRAGMA foreign_keys"))
        assert (mode, keys) == ("wal", 1)
    else:
        name = await session.scalar(text("SHOW application_name"))
        statement = await session.scalar(text("SHOW statement_timeout"))
        idle = await session.scalar(text("SHOW idle_in_transaction_session_timeout"))
        assert (name, statement, idle) == (NAME, "5s", "5s")


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5))])
async def test_a_moment_comes_back_as_it_was_and_in_utc(session: AsyncSession, zone: timezone) -> None:
    moment = datetime(2026, 1, 15, 10, 30, 0, 123456, zone)
    session.add(User(email="ann@example.com", full_name="Ann", password_hash="none", created_at=moment))
    await session.commit()

    stored = await session.scalar(select(User.created_at))

    assert stored == moment
    assert stored is not None
    assert stored.utcoffset() == timedelta()
