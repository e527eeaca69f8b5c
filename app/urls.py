"""Validation of the database and Redis URLs. No error repeats any part of a URL, because it may contain a password."""

import re
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from pydantic import SecretStr
from redis.asyncio import BlockingConnectionPool
from redis.exceptions import RedisError

# The accepted parameters of a PostgreSQL URL, and their allowed values. None means that any value is allowed. See
# https://www.postgresql.org/docs/current/libpq-connect.html.
KNOWN_PARAMETERS: dict[str, set[str] | None] = {
    "application_name": None,
    "channel_binding": {"disable", "prefer", "require"},
    "connect_timeout": None,
    "dbname": None,
    "gsslib": {"gssapi", "sspi"},
    "host": None,
    "krbsrvname": None,
    "options": None,
    "passfile": None,
    "password": None,
    "port": None,
    "service": None,
    "sslcert": None,
    "sslcrl": None,
    "sslkey": None,
    "sslmode": {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"},
    "sslnegotiation": {"postgres", "direct"},
    "sslpassword": None,
    "sslrootcert": None,
    "ssl_max_protocol_version": {"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"},
    "ssl_min_protocol_version": {"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"},
    "target_session_attrs": {"any", "primary", "standby", "prefer-standby", "read-write", "read-only"},
    "user": None,
}
# asyncpg would send these parameters to the server, so they are removed from the URL that is passed to asyncpg.
# `Connector` applies `connect_timeout`. `channel_binding` is ignored.
NOT_FOR_ASYNCPG = {"channel_binding", "connect_timeout"}

# The pattern from RFC 3986, appendix B. `urllib.parse.urlsplit` would reject some URLs with several hosts, for example
# `postgresql://a,[::1]/app`.
_URL = re.compile(r"([^:/?#]+):(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
_ESCAPE = "is not valid; special characters in a password must be percent-encoded, such as %40 for @"
_HOST = re.compile(r"(?P<name>[\w.-]+|%2F[\w.%-]+|\[[0-9A-Fa-f:.]+\])?(?::(?P<port>[0-9]+))?", re.IGNORECASE)
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
MAX_PORT = 65_535


def parse_database_url(value: SecretStr) -> SecretStr:
    """Check a PostgreSQL or SQLite URL, and return it in normalized form.

    Variants that hosting providers use, such as the scheme `postgres://`, are accepted.

    Raises:
        ValueError: The URL is not valid.
    """
    url = value.get_secret_value().strip()
    scheme, _, rest = url.partition("://")
    if scheme in {"sqlite", "sqlite+aiosqlite"}:
        if rest in {"", "/", "/:memory:"}:  # each connection would have its own database in memory
            raise ValueError("must name a file, such as sqlite:///app.db")
        return SecretStr(f"sqlite+aiosqlite://{rest}")
    if scheme not in {"postgres", "postgresql", "postgresql+asyncpg"}:
        raise ValueError("must begin with postgresql:// or sqlite://")
    return SecretStr(_parse_postgresql_url(f"postgresql://{rest}"))


def _split(url: str) -> SplitResult:
    return SplitResult(*next(_URL.finditer(url)).groups(""))


def _parse_postgresql_url(url: str) -> str:
    parts = _split(url)
    try:
        parameters = _join_hosts(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise ValueError(_ESCAPE) from None
    # If a password contains an unescaped `/`, `?` or `#`, everything after that character, including the `@`, ends up
    # in the path, the query or the fragment.
    if parts.fragment or "@" in parts.query or re.search(r"[@:/]", parts.path[1:]):
        raise ValueError(_ESCAPE)
    if unsupported := parameters.keys() - KNOWN_PARAMETERS:
        names = ", ".join(sorted(name for name in unsupported if name.isidentifier())) or "a parameter"
        raise ValueError(f"has parameters that asyncpg does not support: {names}")
    for name, values in KNOWN_PARAMETERS.items():
        if values and parameters.get(name, min(values)) not in values:
            raise ValueError(f"has a {name} that is not one of {', '.join(sorted(values))}")
    # Reject 0, which libpq treats as no timeout.
    if not re.fullmatch(r"[1-9]|[1-5][0-9]|60", parameters.get("connect_timeout", "1")):
        raise ValueError("has a connect_timeout that is not a number of seconds from 1 to 60")
    query = urlencode({name: value for name, value in parameters.items() if name not in {"host", "port"}})
    return urlunsplit(parts._replace(netloc=_parse_netloc(parts, parameters), query=query))


def _join_hosts(parameters: list[tuple[str, str]]) -> dict[str, str]:
    """Convert SQLAlchemy's syntax for multiple hosts, `?host=a:1&host=b:2`, to libpq's comma-separated syntax."""
    joined = dict(parameters)
    if hosts := [value for name, value in parameters if name == "host"]:
        joined["host"] = ",".join(hosts)
    return joined


def _parse_netloc(parts: SplitResult, parameters: dict[str, str]) -> str:
    """Check the credentials and hosts of a URL, and return its network location, `user:password@host:port,host:port`.

    Hosts in the parameter `host` replace those of the URL, and ports in the parameter `port` are added to hosts without
    a port. asyncpg itself ignores these parameters if the URL has a host before its path.
    """
    credentials, at, hosts = parts.netloc.rpartition("@")
    if "host" in parameters:
        hosts = ",".join(
            quote(host, safe="" if host.startswith("/") else "[]:") for host in parameters["host"].split(",")
        )
    ports = parameters.get("port", "").split(",")
    matches = [_HOST.fullmatch(host) for host in hosts.split(",")]
    if re.search(r"[@[\]]", credentials) or _PERCENT.search(parts.netloc + parts.path) or not all(matches):
        raise ValueError(_ESCAPE)
    if len(ports) not in {1, len(matches)}:
        raise ValueError("must have one port, or one for each host")
    found = [(match["name"] or "", match["port"] or "") for match in matches if match]
    pairs = [(name, port or ports[number % len(ports)]) for number, (name, port) in enumerate(found)]
    if any(port and not (port.isdecimal() and 0 < int(port) <= MAX_PORT) for _, port in pairs):
        raise ValueError("has a port that is not a number from 1 to 65535")
    return credentials + at + ",".join(f"{name}:{port}" if port else name for name, port in pairs)


def parse_web_database_url(value: SecretStr) -> SecretStr:
    """Check that a PostgreSQL URL is valid and contains a role and its password. Return it in normalized form.

    Raises:
        ValueError: The URL is not valid.
    """
    url = parse_database_url(value)
    if not all(split_credentials(url.get_secret_value())):
        raise ValueError("must contain a role and its password, such as postgresql://web:password@db/app")
    return url


def split_credentials(url: str) -> tuple[str, str]:
    """Return the user name and the password in a URL. Each is empty if the URL does not contain it."""
    name, _, password = _split(url).netloc.rpartition("@")[0].partition(":")
    return unquote(name), unquote(password)


def split_hosts(url: str) -> list[str]:
    """Split a PostgreSQL URL with several hosts into one URL per host, for asyncpg."""
    parts = _split(url)
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    query = urlencode([(name, value) for name, value in parameters if name not in NOT_FOR_ASYNCPG])
    credentials, at, hosts = parts.netloc.rpartition("@")
    return [urlunsplit(parts._replace(netloc=f"{credentials}{at}{host}", query=query)) for host in hosts.split(",")]


def describe_ignored_parameters(url: str) -> list[str]:
    """Return a warning for each URL parameter that asyncpg ignores."""
    warning = (
        "DATABASE_URL: asyncpg ignores channel_binding=require. Remove it, and use sslmode=verify-full, which checks "
        "the server's certificate"
    )
    return [warning] if ("channel_binding", "require") in parse_qsl(_split(url).query) else []


def describe_database(url: str) -> str:
    """Describe a database without credentials: its hosts and name, or the file of an SQLite database."""
    parts = _split(url)
    if parts.scheme == "postgresql":
        return unquote(parts.netloc.rpartition("@")[2] + parts.path)
    return parts.path.removeprefix("/")


def check_redis_url(value: SecretStr) -> SecretStr:
    """Check a Redis URL and return it.

    Raises:
        ValueError: The URL is not valid.
    """
    url = value.get_secret_value()
    try:
        # Creating a connection object checks the parameters without connecting.
        BlockingConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]  # it has no type hints
        parts = urlsplit(url)
        is_valid = parts.scheme == "unix" or bool(_HOST.fullmatch(parts.netloc.rpartition("@")[2]) and parts.hostname)
        # A fragment or a second @ means that the password was not percent-encoded.
        is_valid &= not parts.fragment and "@" not in parts.netloc.rpartition("@")[0]
        is_valid &= parts.scheme == "unix" or "@" not in parts.path + parts.query
    except (ValueError, TypeError, RedisError):  # their messages quote the URL
        is_valid = False
    if not is_valid:
        raise ValueError("must be like redis://host:6379, rediss:// for TLS, or unix:///path, with known parameters")
    return value
