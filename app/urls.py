"""Validation of the database and Redis URLs. No error repeats any part of a URL, because it may be a password."""

import re
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from pydantic import SecretStr
from redis.asyncio.connection import parse_url

# https://www.postgresql.org/docs/current/libpq-connect.html: the parameters that asyncpg implements.
SUPPORTED = {
    "application_name",
    "dbname",
    "host",
    "options",
    "passfile",
    "password",
    "port",
    "sslcert",
    "sslcrl",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslpassword",
    "sslrootcert",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "target_session_attrs",
    "user",
}
# Parameters that providers add, and that are left out: asyncpg has no channel binding, and the timeout is a setting.
IGNORED = {"channel_binding", "connect_timeout"}

_ESCAPE = "is not valid; special characters in a password are percent-encoded, such as %40 for @"
_HOST = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+\])?(:[0-9]+)?")


def parse_database_url(value: SecretStr) -> SecretStr:
    """Check a URL of PostgreSQL or SQLite, in the forms in which providers write it, and return it normalized.

    Raises:
        ValueError: The URL is not valid.
    """
    url = value.get_secret_value().strip()
    scheme, _, rest = url.partition("://")
    if scheme in {"sqlite", "sqlite+aiosqlite"}:
        if rest in {"", "/", "/:memory:"}:  # in memory, each connection has its own database
            raise ValueError("must name a file, such as sqlite:///app.db")
        return SecretStr(f"sqlite+aiosqlite://{rest}")
    if scheme not in {"postgres", "postgresql", "postgresql+asyncpg"}:
        raise ValueError("must begin with postgresql:// or sqlite://")
    return SecretStr(_parse_postgresql_url(f"postgresql://{rest}"))


def _parse_postgresql_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        parameters = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise ValueError(_ESCAPE) from None
    credentials, _, hosts = parts.netloc.rpartition("@")
    is_escaped = not re.search(r"%(?![0-9A-Fa-f]{2})", parts.netloc + parts.path)
    has_hosts = all(_HOST.fullmatch(host) for host in hosts.split(","))
    if parts.fragment or "@" in credentials or not is_escaped or not has_hosts or re.search(r"[@:/]", parts.path[1:]):
        raise ValueError(_ESCAPE)
    if unsupported := parameters.keys() - SUPPORTED - IGNORED:
        names = ", ".join(sorted(name for name in unsupported if name.isidentifier())) or "a parameter"
        raise ValueError(f"has parameters that asyncpg does not support: {names}")
    query = urlencode({name: value for name, value in parameters.items() if name not in IGNORED})
    return urlunsplit(parts._replace(query=query))


def split_hosts(url: str) -> list[str]:
    """Return a URL of PostgreSQL for each of its hosts."""
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    return [urlunsplit(parts._replace(netloc=f"{credentials}{at}{host}")) for host in hosts.split(",")]


def describe_database(url: str) -> str:
    """Return the hosts and the name of a database, or the file of an SQLite database, without credentials."""
    parts = urlsplit(url)
    if parts.scheme == "postgresql":
        return f"{parts.netloc.rpartition('@')[2]}{unquote(parts.path)}"
    return parts.path.removeprefix("/")


def check_redis_url(value: SecretStr) -> SecretStr:
    """Check a Redis URL.

    Raises:
        ValueError: The URL is not valid.
    """
    url = value.get_secret_value()
    try:
        parse_url(url)
        parts = urlsplit(url)
        is_valid = parts.scheme == "unix" or bool(_HOST.fullmatch(parts.netloc.rpartition("@")[2]) and parts.hostname)
    except ValueError:  # its message quotes the URL
        is_valid = False
    if not is_valid or parts.fragment or "@" in parts.netloc.rpartition("@")[0]:
        raise ValueError("must be like redis://host:6379, rediss:// for TLS, or unix:///path")
    return value
