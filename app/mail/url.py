"""Validation of the mail server's URL and of the sender. Error messages never repeat any part of these values."""

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr, validate_email

# The encryption mode and default port of each URL scheme (RFC 8314, RFC 6409).
_SCHEMES: dict[str, tuple[Literal["none", "starttls", "tls"], int]] = {
    "smtp": ("none", 25),
    "smtp+starttls": ("starttls", 587),
    "smtps": ("tls", 465),
}


@dataclass(frozen=True, slots=True)
class SMTPServer:
    """The address, the encryption and the credentials of a mail server."""

    host: str
    port: int
    encryption: Literal["none", "starttls", "tls"]
    username: str | None
    password: str | None = field(repr=False)


def parse_smtp_url(url: str) -> SMTPServer:
    """Parse a URL such as `smtps://user:password@host`. Credentials are percent-decoded.

    Raises:
        ValueError: The URL is not valid.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        port, parts = None, urlsplit("")
    has_extras = parts.path.strip("/") or parts.query or parts.fragment or bool(parts.username) != bool(parts.password)
    if parts.scheme not in _SCHEMES or not parts.hostname or has_extras:
        raise ValueError(
            "must be like smtps://user:password@host, smtp+starttls://, or smtp:// without TLS; special characters in "
            "a password are percent-encoded, such as %40 for @"
        )
    encryption, default_port = _SCHEMES[parts.scheme]
    if parts.username and encryption == "none":
        raise ValueError("would send a password unencrypted; use smtps:// or smtp+starttls://")
    username, password = (unquote(text) if text else None for text in (parts.username, parts.password))
    return SMTPServer(parts.hostname, port or default_port, encryption, username, password)


def check_smtp_url(value: SecretStr) -> SecretStr:
    """Check the URL of a mail server and return it.

    Raises:
        ValueError: The URL is not valid.
    """
    parse_smtp_url(value.get_secret_value())
    return value


def check_sender(value: str) -> str:
    """Check a sender such as `no-reply@example.com` or `Example <no-reply@example.com>`, and return it.

    Raises:
        ValueError: The address is not valid.
    """
    try:
        validate_email(value)
    except ValueError:
        raise ValueError("must be like no-reply@example.com, or Example <no-reply@example.com>") from None
    return value
