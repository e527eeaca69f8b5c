"""`ReadSession` reads in autocommit mode. `WriteSession` is one transaction, committed before the response starts."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated

import httpx
import pytest
from fastapi import Depends
from fastapi.sse import EventSourceResponse
from sqlalchemy import delete, event, func, insert, select, text, update
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import Message, Receive, Scope, Send

from app import PREFIX
from app.dependencies import ReadSession, WriteSession, get_write_session
from app.errors import Conflict
from app.lifespan import lifespan
from app.main import create_app
from app.settings import Settings
from app.users.dependencies import get_current_user
from app.users.models import User
from tests.conftest import Service, change, serve
from tests.people import register, sign_up

COUNT = select(func.count()).select_from(User)


def make_user(email: str) -> User:
    return User(email=email, full_name="Ann", password_hash="none")


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    """The running application, with a connection pool of size 1."""
    async with serve(change(settings, database_pool_size=1, database_pool_timeout=60)) as service:
        yield service


async def test_write_is_committed_before_the_response_starts(settings: Settings) -> None:
    app = create_app(settings)
    stored: list[object] = []
    async with lifespan(app) as state:

        async def count_before_response(scope: Scope, receive: Receive, send: Send) -> None:
            async def count_and_send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    stored.extend(await state["fast_reader"].fetch_one(COUNT) or [None])
                await send(message)

            await app({**scope, "state": {**state}}, receive, count_and_send)

        transport = httpx.ASGITransport(count_before_response)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://test{PREFIX}") as client:
            await register(client)
            await register(client, "bob@example.com")

    assert stored == [1, 2]


async def change_name(session: ReadSession) -> None:
    user = await session.scalar(select(User))
    assert user
    user.full_name = "Bob"


async def change_name_then_open_transaction(_: Annotated[None, Depends(change_name)], session: WriteSession) -> None:
    pass  # without the error, the change would be committed before this transaction begins


async def update_name(session: ReadSession) -> None:
    await session.execute(update(User).values(full_name="Bob"))


async def insert_user(session: ReadSession) -> None:
    values = {"email": "bob@example.com", "full_name": "Bob", "password_hash": "none"}
    await session.execute(insert(User).values(values))


async def delete_users(session: ReadSession) -> None:
    await session.execute(delete(User))


async def flush_name(session: ReadSession) -> None:
    await change_name(session)
    await session.flush()


async def add_user_later(session: ReadSession) -> AsyncIterator[None]:
    yield
    session.add(make_user("bob@example.com"))


async def commit_before_the_user_is_added(
    _: Annotated[None, Depends(add_user_later, scope="function")], session: WriteSession
) -> None:
    pass


@pytest.mark.parametrize(
    "endpoint",
    [
        commit_before_the_user_is_added,
        change_name,
        change_name_then_open_transaction,
        update_name,
        insert_user,
        delete_users,
        flush_name,
    ],
    ids=lambda each: each.__name__,
)
async def test_change_in_read_session_is_an_error(
    service: Service, session: AsyncSession, endpoint: Callable[..., Awaitable[None]]
) -> None:
    service.app.post(PREFIX + "/rename-in-a-test", status_code=204)(endpoint)
    await register(service.client)

    with pytest.raises(RuntimeError, match="WriteSession"):
        await service.client.post("/rename-in-a-test")

    assert await session.scalar(select(User.full_name)) == "Ann"


async def test_use_of_a_closed_session_is_an_error(service: Service) -> None:
    """If this were not an error, the session would open another connection and never return it to the pool."""

    @service.app.get(PREFIX + "/test", response_class=EventSourceResponse)
    async def follow(session: ReadSession) -> AsyncIterator[int | None]:
        yield 1
        yield await session.scalar(COUNT)

    with pytest.raises(ExceptionGroup) as caught:
        await service.client.get("/test")

    assert caught.group_contains(InvalidRequestError, match="permanently closed")


async def test_closed_session_holds_no_connection_and_its_objects_can_be_read(service: Service) -> None:
    @service.app.get(PREFIX + "/test")
    async def read_and_close(session: ReadSession) -> list[object]:
        user = (await session.scalars(select(User))).one()
        await session.close()
        return [user.email, *(await service.state["fast_reader"].fetch_one(COUNT) or ())]

    await register(service.client)

    assert (await service.client.get("/test")).json() == ["ann@example.com", 1]


async def test_failed_update_is_rolled_back(client: httpx.AsyncClient, session: AsyncSession) -> None:
    ann = await sign_up(client)
    await register(client, "bob@example.com")

    taken = await client.patch("/users/me", headers=ann.auth, json={"full_name": "A", "email": "bob@example.com"})

    assert taken.status_code == 400
    assert await session.scalar(select(User.full_name).where(User.id == ann.id)) == "Ann"


@pytest.mark.parametrize(("error", "status"), [(Conflict(), 409), (RuntimeError("a bug"), 500)])
async def test_exception_after_writes_rolls_all_of_them_back(
    service_with_bug: Service, error: Exception, status: int
) -> None:
    service = service_with_bug

    @service.app.post(PREFIX + "/test")
    async def read_write_and_fail(read: ReadSession, write: WriteSession) -> None:
        await read.scalar(COUNT)
        for email in ("ann@example.com", "bob@example.com"):
            write.add(make_user(email))
            await write.flush()
        raise error

    response = await service.client.post("/test")

    assert response.status_code == status
    assert await service.state["fast_reader"].fetch_one(COUNT) == (0,)


async def test_read_session_holds_no_lock_between_statements(settings: Settings) -> None:
    """On SQLite, a transaction takes the write lock when it begins.

    If the read session kept a transaction open, other requests would have to wait.
    """
    has_read, may_end = asyncio.Event(), asyncio.Event()
    async with serve(change(settings, database_statement_timeout=1)) as service:

        @service.app.get(PREFIX + "/test")
        async def read_twice(session: ReadSession) -> list[int | None]:
            before = await session.scalar(COUNT)
            has_read.set()
            await may_end.wait()
            return [before, await session.scalar(COUNT)]

        reading = asyncio.create_task(service.client.get("/test"))
        async with asyncio.timeout(60):
            await has_read.wait()
        registered = await register(service.client)
        may_end.set()
        read = await reading

    assert registered.status_code == 201
    assert read.json() == [0, 1]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_read_session_is_idle_but_not_in_a_transaction(service: Service) -> None:
    @service.app.get(PREFIX + "/test")
    async def read_state(session: ReadSession) -> str | None:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        async with service.state["probe_engine"].connect() as connection:
            state = text("SELECT state FROM pg_stat_activity WHERE pid = :pid")
            found: str | None = await connection.scalar(state, {"pid": pid})
            return found

    assert (await service.client.get("/test")).json() == "idle"


async def read_first(session: ReadSession) -> int | None:
    return await session.scalar(COUNT)


async def test_request_with_both_sessions_needs_one_connection(service: Service) -> None:
    """If each request held one connection and waited for a second one, all requests would time out with a 503."""

    @service.app.post(PREFIX + "/test/{number}")
    async def read_and_write(
        number: int, count: Annotated[int, Depends(read_first)], read: ReadSession, write: WriteSession
    ) -> bool:
        users = (await read.scalars(select(User))).all()
        write.add(make_user(f"{number}@example.com"))
        await write.flush()
        return len(users) >= count and read is write

    async with asyncio.timeout(60):
        responses = await asyncio.gather(*(service.client.post(f"/test/{number}") for number in range(20)))

    assert [(response.status_code, response.json()) for response in responses] == [(200, True)] * 20
    assert await service.state["fast_reader"].fetch_one(COUNT) == (20,)


async def test_concurrent_requests_of_every_kind_share_one_connection(service: Service) -> None:
    """Updates read the current user with `FastReader` and then write, but must not use two connections at once."""
    ann = await sign_up(service.client)

    async with asyncio.timeout(60):
        responses = await asyncio.gather(
            *(
                request
                for number in range(10)
                for request in (
                    service.client.get("/users/me", headers=ann.auth),
                    service.client.patch("/users/me", headers=ann.auth, json={"full_name": f"Ann {number}"}),
                    register(service.client, f"{number}@example.com"),
                )
            )
        )

    assert [response.status_code for response in responses] == [200, 200, 201] * 10


async def test_object_from_a_read_can_be_changed_and_returned(service: Service) -> None:
    @service.app.post(PREFIX + "/test")
    async def rename(read: ReadSession, write: WriteSession) -> str:
        user = (await read.scalars(select(User))).one()
        user.full_name = "Anna"
        await write.commit()
        return user.full_name

    await register(service.client)

    assert (await service.client.post("/test")).json() == "Anna"
    assert await service.state["fast_reader"].fetch_one(select(User.full_name)) == ("Anna",)


async def test_read_session_searches_escaped_text_and_fires_events(service: Service, session: AsyncSession) -> None:
    statements: list[str] = []
    event.listen(
        service.state["engine"].sync_engine,
        "before_cursor_execute",
        lambda *arguments: statements.append(arguments[2]),
    )

    @service.app.get(PREFIX + "/test")
    async def search(session: ReadSession, q: str) -> list[str]:
        return list(await session.scalars(select(User.email).where(User.email.icontains(q, autoescape=True))))

    session.add_all([make_user("ann_a@example.com"), make_user("annba@example.com")])
    await session.commit()
    statements.clear()

    response = await service.client.get("/test", params={"q": "N_A"})

    assert response.json() == ["ann_a@example.com"]
    assert len(statements) == 1


async def test_dependencies_can_be_overridden(
    client: httpx.AsyncClient, service: Service, session: AsyncSession
) -> None:
    """The keys of `dependency_overrides` are the functions in the `Annotated` types, as in FastAPI's documentation."""
    ann = make_user("ann@example.com")
    session.add(ann)
    await session.flush()
    before = await client.get("/users/me")

    service.app.dependency_overrides = {get_current_user: lambda: ann, get_write_session: lambda: session}
    read = await client.get("/users/me")
    changed = await client.patch("/users/me", json={"full_name": "Anna"})
    await session.rollback()

    assert [before.status_code, read.status_code, changed.status_code] == [401, 200, 200]
    assert changed.json()["full_name"] == "Anna"
    assert await session.scalar(COUNT) == 0
