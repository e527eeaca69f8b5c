"""A database outage is logged in one line when it starts, with its cause, and then in one line every half minute."""

import asyncio

import pytest
import structlog
from sqlalchemy import make_url, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import DatabaseUnreachable
from app.settings import Settings
from app.users.models import User
from tests.conftest import change, serve
from tests.people import register, sign_up


async def test_first_cause_is_logged_once_and_later_causes_are_counted(
    settings: Settings, logs: list[structlog.typing.EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.database.outages.OUTAGE_SECONDS", 2)
    unreachable = change(settings, database_url="postgresql://u@127.0.0.1:1/x", database_migrate=False)
    async with serve(unreachable, prepared=True) as service:
        statuses = [(await register(service.client)).status_code for _ in range(5)]
        await asyncio.sleep(5)  # long enough for the second line and the end of the outage
        statuses.append((await service.client.get("/health/ready")).status_code)

    assert statuses == [503] * 6
    lines = [entry for entry in logs if entry["event"] == "database unavailable"]
    reason = lines[0]["reason"]
    assert "Connect call failed" in reason
    assert len(lines) < 6
    assert {line["reason"] for line in lines} == {reason}
    assert all(line["reasons"] == [f"{line['failures']} x {reason}"] for line in lines)
    # The last failure begins a new outage, so the failure count starts at 1 again.
    assert (lines[0]["failures"], lines[-1]["failures"], sum(line["failures"] for line in lines)) == (1, 1, 6)
    first, *_, last_but_one, _ = [entry for entry in logs if "database" in entry["event"]]
    assert last_but_one["event"] == "no database failures"
    assert "request_id" in first
    assert "request_id" not in last_but_one  # the line does not concern a single request


async def test_reason_is_that_of_the_newest_failure(
    settings: Settings, logs: list[structlog.typing.EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.database.outages.OUTAGE_SECONDS", 0.1)
    async with serve(settings) as service:
        outages = service.state["outages"]
        for reason in ("a", "b", "b", "c"):
            outages.add(DatabaseUnreachable(reason))
        await asyncio.sleep(0.5)

    lines = [entry for entry in logs if entry["event"] == "database unavailable"]
    assert [line["reason"] for line in lines] == ["DatabaseUnreachable: a", "DatabaseUnreachable: c"]
    assert lines[1]["reasons"][0] == "2 x DatabaseUnreachable: b"


async def test_exhausted_pool_is_described_in_plain_words(
    settings: Settings, logs: list[structlog.typing.EventDict]
) -> None:
    async with serve(change(settings, database_pool_size=1, database_pool_timeout=3)) as service:
        ann = await sign_up(service.client)
        async with AsyncSession(service.state["engine"]) as session:
            await session.execute(select(1))
            reads = [service.client.get("/users/me", headers=ann.auth) for _ in range(3)]
            write = service.client.post("/auth/logout", json={"refresh_token": ann.refresh_token})
            responses = await asyncio.gather(*reads, write)

    assert [response.status_code for response in responses] == [503] * 4
    (line,) = [entry for entry in logs if entry["event"] == "database unavailable"]
    assert line["reason"] == "TimeoutError: no connection was free for 3 s (DATABASE_POOL_SIZE=1)"
    assert line["waiting"] == 3  # in addition to the request that has failed


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_reason_contains_the_name_of_the_drivers_error(
    settings: Settings, session: AsyncSession, logs: list[structlog.typing.EventDict]
) -> None:
    async with serve(change(settings, database_statement_timeout=0.5)) as service:
        ann = await sign_up(service.client)
        await session.execute(update(User).values(full_name="locked"))
        await service.client.patch("/users/me", headers=ann.auth, json={"full_name": "A"})

    (line,) = [entry for entry in logs if entry["event"] == "database unavailable"]
    assert line["reason"] == "QueryCanceledError: canceling statement due to statement timeout"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("missing", [{"database": "dropped"}, {"username": "dropped"}], ids=["database", "role"])
async def test_missing_database_or_role_is_an_outage(
    settings: Settings, missing: dict[str, str], logs: list[structlog.typing.EventDict]
) -> None:
    url = make_url(settings.database_url.get_secret_value()).set(**missing)  # type: ignore[arg-type]  # valid names
    dropped = change(settings, database_url=url.render_as_string(hide_password=False))
    async with serve(dropped, prepared=True) as service:
        responses = [await register(service.client), await service.client.get("/health/ready")]

    assert [response.status_code for response in responses] == [503, 503]
    (line,) = [entry for entry in logs if entry["event"] == "database unavailable"]
    assert '"dropped"' in line["reason"]
