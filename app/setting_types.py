"""The types of settings. Error messages describe the expected format, and never repeat the value."""

import re
import secrets
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo
from pydantic_settings import NoDecode

from app.mail.url import check_sender, check_smtp_url
from app.urls import check_redis_url, parse_database_url, parse_web_database_url

# RFC 7518, section 3.2: a key for HS256 must be at least as long as the hash output, 32 bytes.
SECRET_KEY_BYTES = 32
# The example value in .env.example and docker-compose.yml, which is rejected in production.
EXAMPLE_SECRET_KEY = "change-me-to-the-output-of-openssl-rand-hex-32"  # noqa: S105  an example
# All IPv4 addresses, mapped to IPv6, and all IPv6 addresses that IANA assigns as global unicast (RFC 3587).
_EVERYBODY = IPv6Network("::ffff:0:0/96"), IPv6Network("2000::/3")
# IPv4 addresses that no client can have: multicast and reserved addresses.
_NOBODY = "224.0.0.0/3"


def _check_secret_key(value: SecretStr, info: ValidationInfo) -> SecretStr:
    key = value.get_secret_value().strip()
    if not value.get_secret_value() and info.data.get("environment") != "production":
        key = secrets.token_urlsafe(SECRET_KEY_BYTES)
    if not key:
        raise ValueError("must be set; make one with `openssl rand -hex 32`")
    if len(key.encode()) < SECRET_KEY_BYTES:
        raise ValueError(f"must have at least {SECRET_KEY_BYTES} bytes; make one with `openssl rand -hex 32`")
    if key == EXAMPLE_SECRET_KEY and info.data.get("environment") == "production":
        raise ValueError("is the example; make one with `openssl rand -hex 32`")
    return SecretStr(key)


def _split(value: object) -> object:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _check_networks(values: list[str]) -> list[str]:
    # Accept only IP addresses and networks: Uvicorn treats any other string as a host name. Reject networks that
    # together contain all IPv4 or all IPv6 addresses, because every client would then be trusted.
    try:
        networks = collapse_addresses(_to_ipv6(ip_network(value)) for value in [*values, _NOBODY])
        is_valid = not any(everybody.subnet_of(network) for network in networks for everybody in _EVERYBODY)
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ValueError(
            "must be addresses or networks like 10.0.0.0/8, neither host names nor networks that contain all addresses"
        )
    return values


def _to_ipv6(network: IPv4Network | IPv6Network) -> IPv6Network:
    """Convert an IPv4 network to its IPv4-mapped IPv6 form, as seen on a socket that listens on `::`."""
    if isinstance(network, IPv6Network):
        return network
    return IPv6Network(f"::ffff:{network.network_address}/{96 + network.prefixlen}")


def _matches(pattern: str, message: str) -> AfterValidator:
    """Build a validator that raises a ValueError with `message` unless the whole value matches `pattern`."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(message)
        return value

    return AfterValidator(check)


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


CommaSeparated = (NoDecode, BeforeValidator(_split))
DatabaseURL = Annotated[SecretStr, AfterValidator(parse_database_url)]
WebDatabaseURL = Annotated[SecretStr, AfterValidator(parse_web_database_url)]
RedisURL = Annotated[SecretStr, AfterValidator(check_redis_url)]
SMTPURL = Annotated[SecretStr, AfterValidator(check_smtp_url)]
MailSender = Annotated[str, AfterValidator(check_sender)]
PublicURL = Annotated[
    str,
    _matches(
        r"https?://[A-Za-z0-9.-]+(:[0-9]+)?(/[A-Za-z0-9._~-]+)*",
        "must be like https://example.com or https://example.com/api, without a slash at the end",
    ),
]
PageURL = Annotated[
    str, _matches(r"https?://[^\s#]+", "must be like https://example.com/reset, without a # and what follows it")
]
SecretKey = Annotated[SecretStr, AfterValidator(_check_secret_key)]
# Accept an empty secret file. Docker Compose requires the file even if there is no previous key.
PreviousSecretKey = Annotated[SecretKey | None, BeforeValidator(lambda value: value or None)]
Networks = Annotated[list[str], *CommaSeparated, AfterValidator(_check_networks)]
Host = Annotated[
    str,
    BeforeValidator(_lower),
    _matches(
        r"\*|(\*\.)?[a-z0-9_.-]+|\[[0-9a-f:.]+\]",
        "must be names like example.com, or *.example.com, without a port; or *",
    ),
]
Origin = Annotated[
    str,
    _matches(r"\*|https?://[a-z0-9.-]+(:[0-9]+)?", "must be origins like https://example.com, without a path"),
]
RootPath = Annotated[str, _matches(r"(/[A-Za-z0-9._~-]+)*", "must be like /api, without a slash at the end")]
Rate = Annotated[
    str,
    _matches(r"[1-9][0-9]{0,8}/(second|minute|hour|day)", "must be like 600/minute, with second, minute, hour or day"),
]
Seconds = Annotated[float, Field(ge=0.1)]
LogLevel = Annotated[Literal["critical", "error", "warning", "info", "debug"], BeforeValidator(_lower)]
