"""Send messages to the mail server, or write them to the log."""

import asyncio
import re
from contextlib import suppress
from email.message import EmailMessage
from typing import Protocol

import structlog
from aiosmtplib import (
    SMTP,
    SMTPDataError,
    SMTPException,
    SMTPNotSupported,
    SMTPRecipientsRefused,
    SMTPResponseException,
)

from app.mail.url import parse_smtp_url
from app.settings import Settings

log = structlog.stdlib.get_logger("app.mail")

# Maximum time in seconds to send one email, including the time to connect.
SEND_SECONDS = 30.0
# Timeout for a single SMTP command, in seconds. It is shorter than RFC 5321 recommends (section 4.5.3.2).
COMMAND_SECONDS = 10.0
# https://datatracker.ietf.org/doc/html/rfc5321#section-4.2.3
SERVICE_NOT_AVAILABLE, PERMANENT_FAILURE = 421, 500
# A word that contains an email address. The lookbehind makes the search time linear in the length of the text.
_ADDRESS = re.compile(r"(?<!\S)\S+@\S+")


class Undeliverable(Exception):
    """The mail server rejects this email permanently."""


class Deferred(Exception):
    """The mail server rejects this email temporarily."""


class MailServerUnavailable(Exception):
    """The mail server cannot be reached, does not accept any email, or lacks the required encryption."""


class Transport(Protocol):
    """Sends messages. The connection is opened when the first message is sent."""

    async def send(self, message: EmailMessage) -> None:
        """Send a message.

        Raises:
            Undeliverable: The mail server rejects the message permanently.
            Deferred: The mail server rejects the message temporarily.
            MailServerUnavailable: The mail server cannot be used for any message at the moment.
        """

    async def close(self) -> None:
        """Close the connection, if there is one."""


class SMTPTransport:
    """Sends all messages over one SMTP connection. TLS certificates are verified."""

    def __init__(self, url: str) -> None:
        self._server = parse_smtp_url(url)
        self._client: SMTP | None = None

    async def send(self, message: EmailMessage) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                client = self._client or await self._connect()
                await client.send_message(message)
        except SMTPRecipientsRefused as refused:
            raise self._explain(refused.recipients[0]) from refused
        except SMTPDataError as error:
            raise self._explain(error) from error
        except SMTPNotSupported as error:  # a non-ASCII address, and a server without SMTPUTF8
            raise Undeliverable(error.message) from error
        except (SMTPException, OSError) as error:  # TimeoutError is an OSError
            self._disconnect()
            raise MailServerUnavailable(str(error) or f"no answer within {SEND_SECONDS:g} s") from error
        except asyncio.CancelledError:
            self._disconnect()
            raise

    async def _connect(self) -> SMTP:
        server = self._server
        self._client = SMTP(
            hostname=server.host,
            port=server.port,
            username=server.username,
            password=server.password,
            use_tls=server.encryption == "tls",
            start_tls=server.encryption == "starttls",  # None would mean "if the server offers it"
            timeout=COMMAND_SECONDS,
        )
        await self._client.connect()
        return self._client

    def _explain(self, error: SMTPResponseException) -> Exception:
        # Replies from many mail servers contain the recipient's address, which must not be logged.
        reason = _ADDRESS.sub("***", f"{error.code} {error.message}")
        if error.code == SERVICE_NOT_AVAILABLE:
            self._disconnect()
            return MailServerUnavailable(reason)
        # Status codes 5.7.x mean that the sender lacks permission (RFC 3463), for example "Relay access denied".
        # Treat them as temporary failures, so that the email is sent once permission is granted.
        is_permanent = error.code >= PERMANENT_FAILURE and not error.message.startswith("5.7.")
        return Undeliverable(reason) if is_permanent else Deferred(reason)

    def _disconnect(self) -> None:
        if self._client:
            self._client.close()
        self._client = None

    async def close(self) -> None:
        with suppress(SMTPException, OSError):  # the server has already accepted the messages
            if self._client:
                await self._client.quit()
        self._disconnect()


class LogTransport:
    """Writes emails to the log, including their links and tokens. For development only."""

    async def send(self, message: EmailMessage) -> None:
        (text, *_) = message.iter_parts()
        line = f"mail to {message['To']}: {message['Subject']}\n\n{text.get_content()}"
        log.info(line)

    async def close(self) -> None:
        pass


def create_transport(settings: Settings) -> Transport:
    """Return a transport for the configured mail server, or one that writes to the log if there is no mail server."""
    return SMTPTransport(settings.smtp_url.get_secret_value()) if settings.smtp_url else LogTransport()
