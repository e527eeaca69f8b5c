"""The outbox: no email is lost or blocks another, and no request waits for the mail server."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import httpx
import pytest
import structlog
from processes import TIMEOUT, free_port
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.database import FastReader, OutageLog, create_engine, utc_now
from app.limiter import MemoryCounter, RateLimiter
from app.mail import sender as sender_module
from app.mail import transport as transport_module
from app.mail.message import Content
from app.mail.models import Mail
from app.mail.outbox import Outbox, Writer
from app.mail.sender import LEASE, MAX_AGE, Sender
from app.settings import Settings
from app.users.schemas import normalize_email
from tests.conftest import NO_LIMIT, change, make_settings
from tests.pages import command
from tests.people import TOO_LONG_IN_LOWER_CASE, sign_up
from tests.smtp_server import MailServer, mail_server, text_of

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the sender's intervals to tenths of a second, but raise its timeouts, because the machine may be busy."""
    monkeypatch.setattr(transport_module, "COMMAND_SECONDS", TIMEOUT)
    monkeypatch.setattr(transport_module, "SEND_SECONDS", TIMEOUT)
    monkeypatch.setattr(sender_module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(sender_module, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(sender_module, "FIRST_RETRY", timedelta(seconds=0.1))


@pytest.fixture
def settings(database_url: str, mails: MailServer) -> Settings:
    return make_settings(
        database_url=database_url,
        database_migrate=False,
        mail=True,
        smtp_url=f"smtp://127.0.0.1:{mails.port}",
        mail_from="no-reply@example.org",
        rate_limit_recipient=NO_LIMIT,
    )


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(settings)
    yield engine
    await engine.dispose()


async def write_number(_: AsyncSession, mail: Mail) -> Content | None:
    """Write the content of a numbered email. Number 0 has no content, so it is not sent."""
    number = mail.context["number"]
    return Content(f"Mail {number}", f"This is mail {number}.") if number else None


async def test_documented_writer_writes_to_existing_users(client: httpx.AsyncClient, session: AsyncSession) -> None:
    documented: dict[str, Any] = {}
    exec(command("mail-writer"), documented)  # noqa: S102  from our own documentation
    write: Writer = documented["mail_writers"](make_settings())["welcome"]
    user = await sign_up(client)

    contents = [await write(session, Mail(context={"user_id": user_id})) for user_id in (user.id, user.id + 1)]

    assert contents == [Content("Welcome", "Your account is ready."), None]


class Worker:
    """The outbox and the sender of one worker process."""

    def __init__(self, settings: Settings, engine: AsyncEngine, write: Writer = write_number) -> None:
        self.outbox = Outbox({"test": write})
        limiter = RateLimiter(settings, None, defaultdict(MemoryCounter))
        self.sender = Sender(settings, engine, self.outbox, limiter, OutageLog(settings, FastReader(engine, settings)))


@pytest.fixture
def worker(settings: Settings, engine: AsyncEngine) -> Worker:
    return Worker(settings, engine)


async def add(engine: AsyncEngine, outbox: Outbox, *numbers: int, recipient: str = "ann@example.com") -> None:
    """Add numbered emails to the outbox in one transaction."""
    async with AsyncSession(engine) as session, session.begin():
        for number in numbers:
            outbox.add(session, "test", recipient, number=number)


async def stored_mails(engine: AsyncEngine) -> list[Mail]:
    async with AsyncSession(engine) as session:
        return list(await session.scalars(select(Mail)))


async def wait_for_mails(engine: AsyncEngine, condition: Callable[[list[Mail]], bool]) -> list[Mail]:
    """Wait until the emails in the outbox meet the condition, and return them."""
    while not condition(found := await stored_mails(engine)):  # noqa: ASYNC110  there is no event to wait for
        await asyncio.sleep(0.01)
    return found


async def wait_until_empty(engine: AsyncEngine) -> None:
    """Wait until all emails have been sent or dropped."""
    await wait_for_mails(engine, lambda mails: not mails)


async def wait_for_availability(sender: Sender, *, available: bool) -> None:
    """Wait until the sender considers the mail server available, or unavailable if `available` is false."""
    async with asyncio.timeout(TIMEOUT):
        while sender.is_available is not available:  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0.01)


Logs = list[structlog.typing.EventDict]


async def wait_for_log(logs: Logs, event: str) -> structlog.typing.EventDict:
    """Wait for a log entry with this event, and return it."""
    while not (found := [entry for entry in logs if entry["event"] == event]):  # noqa: ASYNC110  there is no event to wait for
        await asyncio.sleep(0.01)
    return found[0]


async def test_mail_is_sent_after_the_commit_and_deleted(
    worker: Worker, engine: AsyncEngine, mails: MailServer
) -> None:
    async with worker.sender.run():
        async with AsyncSession(engine) as session:
            worker.outbox.add(session, "test", "ann@example.com", number=1)
            await session.commit()
        mail = await mails.wait_for("Mail 1")
        await wait_until_empty(engine)

    assert text_of(mail) == "This is mail 1.\n"
    assert worker.sender.is_available


async def test_mail_of_a_failed_transaction_is_not_sent(worker: Worker, engine: AsyncEngine, mails: MailServer) -> None:
    async with worker.sender.run():
        async with AsyncSession(engine) as session:
            worker.outbox.add(session, "test", "ann@example.com", number=1)
            await session.flush()
            await session.rollback()
        await add(engine, worker.outbox, 2)
        await mails.wait_for("Mail 2")

    assert len(mails.mails) == 1


async def test_mail_without_content_is_deleted(worker: Worker, engine: AsyncEngine, mails: MailServer) -> None:
    async with worker.sender.run():
        await add(engine, worker.outbox, 0)
        await wait_until_empty(engine)

    assert mails.mails == []


async def test_mail_of_an_unknown_kind_stays_in_the_outbox(
    worker: Worker, engine: AsyncEngine, mails: MailServer
) -> None:
    """During a rollout, a newer release may queue emails whose kind the older release does not know."""
    async with AsyncSession(engine) as session:
        session.add(Mail(kind="later", recipient="ann@example.com", context={}))
        worker.outbox.add(session, "unknown", "ann@example.com", number=1)
        await session.commit()
    async with worker.sender.run():
        await add(engine, worker.outbox, 2)
        await mails.wait_for("Mail 2")

    assert [mail.kind for mail in await stored_mails(engine)] == ["later"]


async def test_mail_of_an_unknown_kind_is_given_up_after_two_days(
    worker: Worker, engine: AsyncEngine, mails: MailServer, logs: Logs
) -> None:
    """The email waits for a release that knows its kind. After two days, such a release is unlikely to run again."""
    old = utc_now() - MAX_AGE - timedelta(seconds=1)
    async with AsyncSession(engine) as session, session.begin():
        session.add(Mail(kind="later", recipient="ann@example.com", context={}, created_at=old, next_attempt_at=old))
    async with worker.sender.run():
        await wait_until_empty(engine)

    assert [entry["reason"] for entry in logs if entry["event"] == "mail dropped"] == ["unknown kind of mail"]
    assert mails.mails == []


async def test_mail_of_a_killed_process_is_sent_by_the_next(
    worker: Worker, engine: AsyncEngine, mails: MailServer
) -> None:
    await add(engine, worker.outbox, 1)  # as if the process had been killed before its sender ran

    async with worker.sender.run():
        await mails.wait_for("Mail 1")


async def test_mail_that_was_being_sent_by_a_killed_process_is_sent_after_its_lease(
    worker: Worker, engine: AsyncEngine, mails: MailServer
) -> None:
    await add(engine, worker.outbox, 1, 2)
    async with AsyncSession(engine) as session, session.begin():
        first = (await session.scalars(select(Mail).order_by(Mail.created_at))).first()
        assert first
        first.next_attempt_at, first.attempts = utc_now() + LEASE, 1
    async with worker.sender.run():
        (waiting,) = await wait_for_mails(engine, lambda mails: len(mails) == 1)
        is_untouched = waiting.attempts == 1
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(update(Mail).values(next_attempt_at=utc_now()))
        await wait_until_empty(engine)

    assert is_untouched
    assert len(mails.mails) == 2


async def test_mail_that_is_sent_twice_has_the_same_id_and_date(
    engine: AsyncEngine, worker: Worker, mails: MailServer
) -> None:
    """If a process is killed after sending an email but before deleting it, the email is sent again."""
    await add(engine, worker.outbox, 1)
    (row,) = await stored_mails(engine)
    again = Mail(id=row.id, kind=row.kind, recipient=row.recipient, context=row.context, created_at=row.created_at)
    async with worker.sender.run():
        await wait_until_empty(engine)
        async with AsyncSession(engine) as session, session.begin():
            session.add(again)
        await wait_until_empty(engine)

    first, second = mails.mails
    assert first["Message-ID"] == second["Message-ID"]
    assert first["Date"] == second["Date"]


async def test_workers_send_each_mail_once(settings: Settings, engine: AsyncEngine, mails: MailServer) -> None:
    workers = [Worker(settings, engine) for _ in range(4)]
    await add(engine, workers[0].outbox, *range(1, 41))

    async with AsyncExitStack() as stack:
        for worker in workers:
            await stack.enter_async_context(worker.sender.run())
        await wait_until_empty(engine)

    assert sorted(str(mail["Subject"]) for mail in mails.mails) == sorted(f"Mail {n}" for n in range(1, 41))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_mail_that_another_worker_is_taking_is_skipped(
    worker: Worker, engine: AsyncEngine, mails: MailServer
) -> None:
    """This runs only on PostgreSQL. SQLite has no row locks: there, one transaction waits for the other."""
    await add(engine, worker.outbox, 1)
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(select(Mail.id).with_for_update())
        await add(engine, worker.outbox, 2)
        async with worker.sender.run():
            await mails.wait_for("Mail 2")

    assert [mail.context["number"] for mail in await stored_mails(engine)] == [1]


async def test_no_transaction_is_open_while_the_mail_server_is_slow(
    worker: Worker, engine: AsyncEngine, mails: MailServer
) -> None:
    mails.may_reply.clear()
    async with worker.sender.run():
        await add(engine, worker.outbox, 1)
        await mails.is_asked.wait()
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(update(Mail).values(kind="test"))  # needs the row lock or, on SQLite, the write lock
            is_waiting = mails.connections == 1 and not mails.mails
        mails.may_reply.set()
        await wait_until_empty(engine)

    assert is_waiting
    assert len(mails.mails) == 1


@pytest.mark.parametrize(("reply", "copies"), [("250 OK", 2), ("450 mailbox busy", 1)])
async def test_worker_that_finishes_after_its_lease_does_not_affect_the_next(
    settings: Settings, engine: AsyncEngine, mails: MailServer, reply: str, copies: int
) -> None:
    """A worker exceeds its lease if, for example, its machine is suspended while the worker is sending an email."""
    mails.replies["*"] = reply
    mails.may_reply.clear()
    async with mail_server() as other_server, AsyncExitStack() as stack:
        first = Worker(settings, engine)
        second = Worker(change(settings, smtp_url=f"smtp://127.0.0.1:{other_server.port}"), engine)
        other_server.may_reply.clear()
        async with first.sender.run():
            await add(engine, first.outbox, 1)
            await mails.is_asked.wait()
            async with AsyncSession(engine) as session, session.begin():
                await session.execute(update(Mail).values(next_attempt_at=utc_now()))
            await stack.enter_async_context(second.sender.run())
            await other_server.is_asked.wait()
            mails.may_reply.set()
        leases = [(mail.attempts, mail.next_attempt_at > utc_now() + LEASE / 2) for mail in await stored_mails(engine)]
        other_server.may_reply.set()
        await wait_until_empty(engine)

    # If the first worker's mail server accepted the email, the email is deleted from the outbox. If the mail server
    # deferred it, both the email and the second worker's lease remain.
    assert leases == ([] if reply == "250 OK" else [(2, True)])
    assert len(mails.mails + other_server.mails) == copies
    assert len({mail["Message-ID"] for mail in mails.mails + other_server.mails}) == 1


async def test_refused_mails_do_not_block_others(
    worker: Worker, engine: AsyncEngine, mails: MailServer, logs: Logs
) -> None:
    mails.replies |= {
        "gone@example.com": "550 5.1.1 <gone@example.com>: User unknown",
        "busy@example.com": "450 mailbox busy",
    }
    async with AsyncSession(engine) as session, session.begin():
        for number in range(1, 5):
            worker.outbox.add(session, "test", "gone@example.com", number=number)
            worker.outbox.add(session, "test", "busy@example.com", number=number)
        worker.outbox.add(session, "test", "ann@example.com", number=9)
    async with worker.sender.run():
        await mails.wait_for("Mail 9")
        waiting = await wait_for_mails(engine, lambda mails: len(mails) == 4)

    assert {mail.recipient for mail in waiting} == {"busy@example.com"}
    given_up = [entry for entry in logs if entry["event"] == "mail dropped"]
    assert [entry["log_level"] for entry in given_up] == ["warning"] * 4
    assert {entry["reason"] for entry in given_up} == {"550 5.1.1 *** User unknown"}
    assert "@example.com" not in repr(given_up)


async def test_mail_to_an_invalid_address_is_dropped(
    worker: Worker, engine: AsyncEngine, mails: MailServer, logs: Logs
) -> None:
    await add(engine, worker.outbox, 1, recipient=normalize_email(TOO_LONG_IN_LOWER_CASE[0]))
    await add(engine, worker.outbox, 2, recipient="ann@example.com\r\nBcc: bob@example.com")
    await add(engine, worker.outbox, 3)
    async with worker.sender.run():
        await mails.wait_for("Mail 3")
        await wait_until_empty(engine)

    assert len(mails.mails) == 1
    problems = [entry for entry in logs if entry["log_level"] != "info"]
    assert [(entry["event"], entry["reason"]) for entry in problems] == [
        ("mail dropped", "the recipient's address is not valid")
    ] * 2
    assert "@" not in repr(problems)


async def test_deferred_mail_is_sent_later(worker: Worker, engine: AsyncEngine, mails: MailServer) -> None:
    mails.replies["ann@example.com"] = "450 mailbox busy"
    async with worker.sender.run():
        await add(engine, worker.outbox, 1)
        await wait_for_mails(engine, lambda mails: mails[0].attempts >= 3)
        del mails.replies["ann@example.com"]
        await wait_until_empty(engine)

    assert len(mails.mails) == 1


async def test_mail_is_given_up_after_two_days(
    worker: Worker, engine: AsyncEngine, mails: MailServer, logs: Logs
) -> None:
    mails.replies["ann@example.com"] = "450 mailbox busy"
    await add(engine, worker.outbox, 1)
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(update(Mail).values(created_at=utc_now() - MAX_AGE - timedelta(seconds=1)))

    async with worker.sender.run():
        await wait_until_empty(engine)

    assert [entry["reason"] for entry in logs if entry["event"] == "mail dropped"] == ["450 mailbox busy"]


async def test_mails_are_sent_when_the_mail_server_is_back(settings: Settings, engine: AsyncEngine, logs: Logs) -> None:
    port = free_port()
    worker = Worker(change(settings, smtp_url=f"smtp://127.0.0.1:{port}"), engine)
    async with worker.sender.run():
        await add(engine, worker.outbox, *range(1, 11))
        await wait_for_mails(engine, lambda mails: sum(mail.attempts for mail in mails) >= 4)
        await wait_for_availability(worker.sender, available=False)
        async with mail_server(port=port) as server:
            await wait_until_empty(engine)

    assert worker.sender.is_available
    assert len({mail["Message-ID"] for mail in server.mails}) == 10
    lines = [(entry["log_level"], entry["event"]) for entry in logs if "mail server" in entry["event"]]
    assert lines == [
        ("warning", "the mail server is unavailable: mails wait"),
        ("info", "the mail server is available again"),
    ]


async def test_mail_server_that_another_worker_has_reached_is_not_reported_as_unavailable(
    settings: Settings, engine: AsyncEngine, logs: Logs, mails: MailServer
) -> None:
    worker = Worker(change(settings, smtp_url=f"smtp://127.0.0.1:{free_port()}"), engine)
    async with worker.sender.run():
        await add(engine, worker.outbox, 1)
        await wait_for_log(logs, "the mail server is unavailable: mails wait")
    other = Worker(settings, engine)
    async with other.sender.run():
        await mails.wait_for("Mail 1")

    await wait_for_availability(worker.sender, available=True)


async def test_mail_is_sent_after_an_outage_of_two_days(settings: Settings, engine: AsyncEngine, logs: Logs) -> None:
    worker = Worker(change(settings, smtp_url=f"smtp://127.0.0.1:{free_port()}"), engine)
    worker.sender._failures = 2000  # noqa: SLF001  as many as there would be in two days
    async with worker.sender.run():
        await add(engine, worker.outbox, 1)
        await wait_for_mails(engine, lambda mails: mails[0].attempts >= 2)

    assert "mail failed" not in [entry["event"] for entry in logs]


async def test_error_in_a_writer_is_logged_and_does_not_block_others(
    worker: Worker, engine: AsyncEngine, mails: MailServer, logs: Logs
) -> None:
    async with AsyncSession(engine) as session, session.begin():
        session.add(Mail(kind="test", recipient="ann@example.com", context={}))  # no number, so its writer fails
    async with worker.sender.run():
        await add(engine, worker.outbox, 2)
        await mails.wait_for("Mail 2")
        failure = await wait_for_log(logs, "mail failed")

    assert failure["log_level"] == "error"
    assert [mail.context for mail in await stored_mails(engine)] == [{}]


async def test_outage_of_the_database_does_not_end_the_sender(
    worker: Worker, engine: AsyncEngine, mails: MailServer, logs: Logs
) -> None:
    rename = "ALTER TABLE {} RENAME TO {}"
    async with engine.begin() as connection:
        await connection.exec_driver_sql(rename.format("mails", "hidden"))
    async with worker.sender.run():
        await wait_for_log(logs, "the mail sender failed")
        async with engine.begin() as connection:
            await connection.exec_driver_sql(rename.format("hidden", "mails"))
        await add(engine, worker.outbox, 1)
        await mails.wait_for("Mail 1")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_unavailable_database_is_logged_as_an_outage(settings: Settings, logs: Logs) -> None:
    engine = create_engine(change(settings, database_url=f"postgresql://127.0.0.1:{free_port()}/x"))
    worker = Worker(settings, engine)
    async with worker.sender.run():
        await wait_for_log(logs, "database unavailable")
    await engine.dispose()

    assert not [entry for entry in logs if entry["log_level"] == "error"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_database_outage_while_a_mail_is_written_keeps_it(
    settings: Settings, engine: AsyncEngine, logs: Logs
) -> None:
    async def write(session: AsyncSession, _: Mail) -> Content | None:
        await session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return None

    worker = Worker(settings, engine, write)
    async with worker.sender.run():
        await add(engine, worker.outbox, 1)
        await wait_for_log(logs, "database unavailable")

    assert not [entry for entry in logs if entry["log_level"] == "error"]
    assert len(await stored_mails(engine)) == 1


async def test_shutdown_finishes_the_mail_that_is_being_sent(
    engine: AsyncEngine, worker: Worker, mails: MailServer
) -> None:
    entered, may_continue = asyncio.Event(), asyncio.Event()

    async def wait(_: AsyncSession, mail: Mail) -> Content:
        entered.set()
        await may_continue.wait()
        return Content(f"Mail {mail.context['number']}", "Hello.")

    worker.outbox.writers = {"test": wait}
    await add(engine, worker.outbox, 1, 2)
    async with worker.sender.run():
        await entered.wait()
        asyncio.get_running_loop().call_later(0.1, may_continue.set)

    assert len(mails.mails) == 1
    assert len(await stored_mails(engine)) == 1


async def test_shutdown_does_not_wait_for_a_silent_mail_server(
    settings: Settings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "SHUTDOWN_SECONDS", 0.1)
    connected, finished = asyncio.Event(), asyncio.Event()

    async def keep_silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await finished.wait()
        writer.close()

    server = await asyncio.start_server(keep_silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    worker = Worker(change(settings, smtp_url=f"smtp://127.0.0.1:{port}"), engine)
    await add(engine, worker.outbox, 1)
    async with asyncio.timeout(60):
        async with worker.sender.run():
            await connected.wait()
    finished.set()
    server.close()
    await server.wait_closed()

    (mail,) = await stored_mails(engine)
    assert mail.attempts == 1
