"""Sending to SMTP servers, with and without TLS, including servers that reject an email or do not respond."""

import asyncio
import ssl
from email.message import EmailMessage
from pathlib import Path
from uuid import uuid4

import pytest
import structlog
import trustme
from processes import free_port

from app.database import utc_now
from app.mail.message import Content, build_message
from app.mail.models import Mail
from app.mail.transport import (
    Deferred,
    LogTransport,
    MailServerUnavailable,
    SMTPTransport,
    Undeliverable,
    create_transport,
)
from tests.conftest import make_settings
from tests.smtp_server import mail_server


def message(recipient: str = "ann@example.com") -> EmailMessage:
    mail = Mail(id=uuid4(), kind="test", recipient=recipient, context={}, created_at=utc_now())
    return build_message(mail, Content("Hello", "Hello, Ann."), "no-reply@example.org")


async def send(url: str, *messages: EmailMessage) -> None:
    transport = SMTPTransport(url)
    try:
        for each in messages:
            await transport.send(each)
    finally:
        await transport.close()


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """A certificate authority that TLS connections of this process trust by default."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    return authority


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_mails_are_sent_over_one_connection() -> None:
    async with mail_server() as server:
        await send(f"smtp://127.0.0.1:{server.port}", message(), message("bob@example.com"))

    assert [mail["To"] for mail in server.mails] == ["ann@example.com", "bob@example.com"]
    assert server.connections == 1
    assert server.login is None


async def test_mail_is_sent_over_tls_with_a_password(authority: trustme.CA) -> None:
    # Do not require TLS for AUTH, because aiosmtpd recognizes only STARTTLS as TLS and would not offer AUTH here.
    async with mail_server(tls=server_context(authority), auth_require_tls=False) as server:
        await send(f"smtps://ann%40x:p%2Fw@127.0.0.1:{server.port}", message())

    assert len(server.mails) == 1
    assert server.login == ("ann@x", "p/w")


async def test_mail_is_sent_over_starttls_with_a_password(authority: trustme.CA) -> None:
    async with mail_server(tls_context=server_context(authority), require_starttls=True) as server:
        await send(f"smtp+starttls://ann:password@127.0.0.1:{server.port}", message())

    assert len(server.mails) == 1
    assert server.login == ("ann", "password")


@pytest.mark.parametrize("scheme", ["smtps", "smtp+starttls"])
async def test_certificate_of_an_unknown_authority_is_rejected(scheme: str) -> None:
    context = server_context(trustme.CA())
    tls, starttls = (context, None) if scheme == "smtps" else (None, context)
    async with mail_server(tls=tls, tls_context=starttls, auth_require_tls=False) as server:
        with pytest.raises(MailServerUnavailable, match="certificate verify failed"):
            await send(f"{scheme}://ann:password@127.0.0.1:{server.port}", message())

    assert (server.mails, server.login) == ([], None)


async def test_server_without_starttls_gets_neither_password_nor_mail() -> None:
    """An attacker on the network could have removed STARTTLS from the extensions that the server advertises."""
    async with mail_server(auth_require_tls=False) as server:
        with pytest.raises(MailServerUnavailable, match="STARTTLS"):
            await send(f"smtp+starttls://ann:password@127.0.0.1:{server.port}", message())

    assert (server.mails, server.login) == ([], None)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ("550 no such user", Undeliverable),
        ("553 mailbox name not allowed", Undeliverable),
        ("450 mailbox busy", Deferred),
        ("554 5.7.1 relay access denied", Deferred),
        ("452 out of storage", Deferred),
        ("421 4.7.1 <ann@example.com>: try again later", MailServerUnavailable),
    ],
)
async def test_refused_recipient_does_not_block_others(reply: str, error: type[Exception]) -> None:
    async with mail_server() as server:
        server.replies["ann@example.com"] = reply
        transport = SMTPTransport(f"smtp://127.0.0.1:{server.port}")
        with pytest.raises(error, match=reply[:3]) as raised:
            await transport.send(message())
        assert "ann@example.com" not in str(raised.value)  # which is logged

        await transport.send(message("bob@example.com"))
        await transport.close()

    assert [mail["To"] for mail in server.mails] == ["bob@example.com"]


async def test_refused_content_does_not_block_others() -> None:
    async with mail_server() as server:
        server.replies["DATA"] = "554 looks like spam"
        transport = SMTPTransport(f"smtp://127.0.0.1:{server.port}")
        with pytest.raises(Undeliverable, match="554"):
            await transport.send(message())

        del server.replies["DATA"]
        await transport.send(message("bob@example.com"))
        await transport.close()

    assert [mail["To"] for mail in server.mails] == ["bob@example.com"]


async def test_server_that_refuses_the_sender_is_unavailable() -> None:
    """A server that refuses the sender would refuse every email. It counts as unavailable, so that no email is dropped.

    Here, the server refuses the MAIL command because of the message size.
    """
    async with mail_server(data_size_limit=100) as server:
        with pytest.raises(MailServerUnavailable, match="552"):
            await send(f"smtp://127.0.0.1:{server.port}", message())


async def test_non_ascii_address_needs_a_server_with_smtputf8() -> None:
    async with mail_server() as without, mail_server(enable_SMTPUTF8=True) as with_accents:
        with pytest.raises(Undeliverable, match="SMTPUTF8"):
            await send(f"smtp://127.0.0.1:{without.port}", message("jörg@example.com"))
        await send(f"smtp://127.0.0.1:{with_accents.port}", message("jörg@example.com"))

    assert without.mails == []
    assert [mail["X-Recipient"] for mail in with_accents.mails] == ["jörg@example.com"]


async def test_unreachable_server_is_unavailable() -> None:
    with pytest.raises(MailServerUnavailable):
        await send(f"smtp://127.0.0.1:{free_port()}", message())


@pytest.mark.parametrize("limit", ["COMMAND_SECONDS", "SEND_SECONDS"])
async def test_unresponsive_server_is_unavailable_after_a_timeout(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(f"app.mail.transport.{limit}", 0.2)
    finished = asyncio.Event()

    async def keep_silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await finished.wait()
        writer.close()

    server = await asyncio.start_server(keep_silent, "127.0.0.1", 0)
    with pytest.raises(MailServerUnavailable):
        await send(f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}", message())
    finished.set()
    server.close()
    await server.wait_closed()


async def test_connection_closed_between_mails_is_reopened() -> None:
    async with mail_server() as server:
        transport = SMTPTransport(f"smtp://127.0.0.1:{server.port}")
        await transport.send(message())
        port = server.port
    with pytest.raises(MailServerUnavailable):
        await transport.send(message())
    async with mail_server(port=port) as server:
        await transport.send(message())
        await transport.close()

    assert len(server.mails) == 1


async def test_mail_without_a_server_is_printed_to_the_log(logs: list[structlog.typing.EventDict]) -> None:
    transport = create_transport(make_settings(mail=True))

    await transport.send(message())
    await transport.close()

    assert isinstance(transport, LogTransport)
    assert [entry["event"] for entry in logs] == ["mail to ann@example.com: Hello\n\nHello, Ann.\n"]
