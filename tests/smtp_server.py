"""An SMTP server on a free port of the loopback interface, which stores the emails that it accepts."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

# Seconds to wait for an email. This is long, because the machine may be running many tests in parallel.
PATIENCE = 60


class MailServer:
    """An SMTP server whose replies a test can choose.

    Attributes:
        port: The port that it listens on.
        mails: The emails that it has accepted.
        replies: Replies such as `550 no such user`, by recipient. The key `*` applies to every recipient, and `DATA` to
            the content of an email.
        login: The user name and password of the last client that authenticated.
        is_asked: This event is set when a client has sent a RCPT command.
        may_reply: While this event is cleared, the server does not reply to RCPT commands. It is initially set.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  aiosmtpd's options
        self.port = 0
        self.mails: list[EmailMessage] = []
        self._protocols: list[SMTP] = []
        self.replies: dict[str, str] = {}
        self.login: tuple[str, str] | None = None
        self.is_asked, self.may_reply = asyncio.Event(), asyncio.Event()
        self.may_reply.set()
        self._changed = asyncio.Condition()
        self._options = options

    def create_protocol(self) -> SMTP:
        """Return the asyncio protocol for a new connection."""
        protocol = SMTP(
            self,
            hostname="localhost",
            loop=asyncio.get_running_loop(),
            authenticator=self._authenticate,
            **self._options,
        )
        self._protocols.append(protocol)
        return protocol

    @property
    def connections(self) -> int:
        """The number of connections so far."""
        return len(self._protocols)

    def close_connections(self) -> None:
        """Close all connections without sending a reply."""
        for protocol in self._protocols:
            if protocol.transport:
                protocol.transport.close()

    def _authenticate(self, _: SMTP, __: Session, ___: Envelope, ____: str, data: LoginPassword) -> AuthResult:
        self.login = data.login.decode(), data.password.decode()
        return AuthResult(success=True)

    async def handle_RCPT(  # noqa: N802  aiosmtpd's name
        self, _: SMTP, __: Session, envelope: Envelope, address: str, ___: list[str]
    ) -> str:
        """Accept or refuse a recipient."""
        self.is_asked.set()
        await self.may_reply.wait()
        reply = self.replies.get(address, self.replies.get("*", "250 OK"))
        if reply.startswith("250"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, _: SMTP, __: Session, envelope: Envelope) -> str:  # noqa: N802
        """Store an email, or refuse its content."""
        assert isinstance(envelope.content, bytes)
        if "DATA" in self.replies:
            return self.replies["DATA"]
        mail = message_from_bytes(envelope.content, _class=EmailMessage, policy=default)
        mail["X-Recipient"] = ", ".join(envelope.rcpt_tos)
        async with self._changed:
            self.mails.append(mail)
            self._changed.notify_all()
        return "250 OK"

    async def wait_for(self, subject: str, recipient: str = "ann@example.com", *, number: int = 1) -> EmailMessage:
        """Wait until the recipient has received `number` emails with this subject, and return email number `number`."""

        def find() -> list[EmailMessage]:
            return [mail for mail in self.mails if (mail["Subject"], mail["X-Recipient"]) == (subject, recipient)]

        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: len(find()) >= number)
        return find()[number - 1]


@asynccontextmanager
async def mail_server(
    *,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    **options: Any,  # noqa: ANN401  aiosmtpd's options
) -> AsyncIterator[MailServer]:
    """Run an SMTP server. With `tls`, each connection begins with a TLS handshake."""
    mails = MailServer(**options)
    server = await asyncio.get_running_loop().create_server(mails.create_protocol, "127.0.0.1", port, ssl=tls)
    mails.port = server.sockets[0].getsockname()[1]
    try:
        yield mails
    finally:
        server.close()
        mails.close_connections()
        await server.wait_closed()


def text_of(mail: EmailMessage) -> str:
    """Return the plain text part of an email."""
    body = mail.get_body(["plain"])
    assert body
    return str(body.get_content()).replace("\r\n", "\n")


def html_of(mail: EmailMessage) -> str:
    """Return the HTML part of an email."""
    body = mail.get_body(["html"])
    assert body
    return str(body.get_content())
