"""Database and Redis URLs are accepted in the forms that hosting providers use. Error messages never repeat a URL."""

import pytest
from pydantic import SecretStr

from app.urls import check_redis_url, describe_database, describe_ignored_parameters, parse_database_url, split_hosts

LIBPQ_EXAMPLE = (
    "sslmode=verify-full&sslrootcert=%2Ftls%2Fca.pem&sslcert=%2Ftls%2Fapp.pem&sslkey=%2Ftls%2Fapp.key"
    "&target_session_attrs=read-write&options=-csearch_path%3Dapp%2Cpublic&application_name=billing"
)
ESCAPE = "is not valid; special characters in a password must be percent-encoded, such as %40 for @"
PORT = "has a port that is not a number from 1 to 65535"
REDIS = "must be like redis://host:6379, rediss:// for TLS, or unix:///path, with known parameters"


def parse(url: str) -> str:
    return parse_database_url(SecretStr(url)).get_secret_value()


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("postgres://app:secret@db/app", "postgresql://app:secret@db/app"),
        ("postgresql://app:secret@db/app", "postgresql://app:secret@db/app"),
        ("postgresql+asyncpg://app:secret@db/app", "postgresql://app:secret@db/app"),
        ("  postgres://app:secret@db/app\n", "postgresql://app:secret@db/app"),
        ("postgresql://app@db", "postgresql://app@db"),
        ("postgresql://app:@db/", "postgresql://app:@db/"),
        ("postgresql://app:p%40ss%2Fw%3A%23%3F%25@db:6432/my%20app", "postgresql://app:p%40ss%2Fw%3A%23%3F%25@db:6432/my%20app"),
        ("postgresql://app:secret@[2001:db8::1]:5433/app", "postgresql://app:secret@[2001:db8::1]:5433/app"),
        ("postgresql://app:secret@[::1],db-2.example.com:6432/app", "postgresql://app:secret@[::1],db-2.example.com:6432/app"),
        ("sqlite:///app.db", "sqlite+aiosqlite:///app.db"),
        ("sqlite+aiosqlite:////data/app.db", "sqlite+aiosqlite:////data/app.db"),
    ],
)  # fmt: skip
def test_database_url_is_normalized(given: str, parsed: str) -> None:
    assert parse(given) == parsed


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        # Neon
        ("sslmode=require&channel_binding=require", "sslmode=require&channel_binding=require"),
        # Vercel, Heroku
        ("sslmode=require&connect_timeout=15", "sslmode=require&connect_timeout=15"),
        # Kerberos
        ("krbsrvname=postgres&gsslib=gssapi", "krbsrvname=postgres&gsslib=gssapi"),
        # PlanetScale, CockroachDB
        ("sslmode=verify-full&sslrootcert=system", "sslmode=verify-full&sslrootcert=system"),
        (LIBPQ_EXAMPLE, LIBPQ_EXAMPLE),
        ("options=endpoint%3Dep-cool-name-123", "options=endpoint%3Dep-cool-name-123"),
        ("sslnegotiation=direct", "sslnegotiation=direct"),
        ("ssl_min_protocol_version=TLSv1.3", "ssl_min_protocol_version=TLSv1.3"),
        ("application_name=", "application_name="),
    ],
)  # fmt: skip
def test_known_parameters_are_kept(given: str, parsed: str) -> None:
    assert parse(f"postgres://app:secret@db/app?{given}") == f"postgresql://app:secret@db/app?{parsed}"


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        # Google Cloud SQL and other Unix sockets
        ("app:x@/app?host=/cloudsql/project:region:db", "app:x@%2Fcloudsql%2Fproject%3Aregion%3Adb/app"),
        ("/app?host=/run/postgresql&user=app", "%2Frun%2Fpostgresql/app?user=app"),
        ("app@%2Frun%2Fpostgresql/app", "app@%2Frun%2Fpostgresql/app"),
        # SQLAlchemy
        ("app:x@/app?host=a:5433&host=b", "app:x@a:5433,b/app"),
        # libpq
        ("app:x@/app?host=a,b&port=5433,5434", "app:x@a:5433,b:5434/app"),
        ("app:x@/app?host=a,b&port=6432", "app:x@a:6432,b:6432/app"),
        ("app:x@db/app?port=6432", "app:x@db:6432/app"),
        ("app:x@db/app?host=other", "app:x@other/app"),
        ("app:x@/app?host=[::1]", "app:x@[::1]/app"),
    ],
)
def test_hosts_in_parameters_are_moved_in_front_of_the_path(given: str, parsed: str) -> None:
    assert parse(f"postgresql://{given}") == f"postgresql://{parsed}"


def test_url_without_a_host_is_left_to_libpqs_defaults() -> None:
    assert parse("postgresql:///app") == "postgresql:/app"


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "",
        "mysql://app:hunter2@db/app",
        "app:hunter2@db/app",
    ],
)
def test_url_of_another_database_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^must begin with postgresql:// or sqlite://$"):
        parse(url)


@pytest.mark.parametrize("character", ["@", "/", "#", "?", "%", "[", "]", "?a=b", "?sslmode=x", "/x?a=", "@x/?b=c"])
@pytest.mark.parametrize("password", ["hunter{}2", "12{}hunter", "{}hunter2", "hunter2{}"])
@pytest.mark.parametrize("host", ["db:5432", "a,[::1]"])
@pytest.mark.parametrize("query", ["", "?sslmode=require"])
def test_unencoded_character_in_a_password_is_refused_and_nothing_is_repeated(
    character: str, password: str, host: str, query: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared
        parse(f"postgresql://app:{password.format(character)}@{host}/app{query}")

    assert str(caught.value) == ESCAPE


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("app:hunter2@db:hunter2/app", ESCAPE),
        ("app:hunter2@db:0/app", PORT),
        ("app:hunter2@db:65536/app", PORT),
        ("app:hunter2@db/app?port=hunter2", PORT),
        ("app:hunter2@/app?host=a,b,c&port=1,2", "must have one port, or one for each host"),
        ("app:hunter2@d b/app", ESCAPE),
        ("app:hunter2@db/app#hunter2", ESCAPE),
        ("app:hunter2@db/app?hunter2", ESCAPE),
        ("app:hunter2@db/app/hunter2", ESCAPE),
        ("app:hunter2@/app?host=hunter2%40", ESCAPE),
    ],
)
def test_invalid_database_url_is_refused_and_nothing_is_repeated(url: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared
        parse(f"postgresql://{url}")

    assert str(caught.value) == message


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+aiosqlite://"])
def test_sqlite_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^must name a file, such as sqlite:///app.db$"):
        parse(url)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("hostaddr=192.0.2.1", "hostaddr"),
        ("pgbouncer=true&connection_limit=1&schema=app", "connection_limit, pgbouncer, schema"),  # Prisma
        ("ssl=true&sslmode=require", "ssl"),
        ("keepalives=1&gssencmode=disable", "gssencmode, keepalives"),
        ("hunter2%20=1", "a parameter"),
    ],
)
def test_parameters_that_asyncpg_does_not_support_are_named(query: str, named: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared
        parse(f"postgresql://app:secret@db/app?{query}")

    assert str(caught.value) == f"has parameters that asyncpg does not support: {named}"


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        ("sslmode=no-verify", "allow, disable, prefer, require, verify-ca, verify-full"),
        ("sslnegotiation=no-verify", "direct, postgres"),
        ("target_session_attrs=", "any, prefer-standby, primary, read-only, read-write, standby"),
        ("ssl_min_protocol_version=1.2", "TLSv1, TLSv1.1, TLSv1.2, TLSv1.3"),
        ("channel_binding=yes", "disable, prefer, require"),
        ("gsslib=mit", "gssapi, sspi"),
    ],
)
def test_unknown_value_of_a_parameter_is_refused_with_the_known_ones(parameter: str, values: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared
        parse(f"postgresql://app:secret@db/app?{parameter}")

    assert str(caught.value) == f"has a {parameter.partition('=')[0]} that is not one of {values}"


@pytest.mark.parametrize("seconds", ["0", "-1", "", "1.5", "61", "600", "hunter2"])
def test_connect_timeout_that_is_no_number_of_seconds_is_refused(seconds: str) -> None:
    with pytest.raises(ValueError, match=r"^has a connect_timeout that is not a number of seconds from 1 to 60$"):
        parse(f"postgresql://app:secret@db/app?connect_timeout={seconds}")


def test_asyncpg_is_not_given_parameters_that_it_would_send_to_the_server() -> None:
    given = "connect_timeout=15&sslmode=require&channel_binding=require&application_name="

    assert split_hosts(f"postgresql://db/app?{given}") == ["postgresql://db/app?sslmode=require&application_name="]


@pytest.mark.parametrize(
    ("query", "is_named"),
    [
        ("sslmode=require&channel_binding=require", True),
        ("channel_binding=prefer", False),
        ("channel_binding=disable", False),
        ("sslmode=require", False),
    ],
)
def test_required_channel_binding_logs_a_warning(query: str, is_named: bool) -> None:
    named = [warning.partition(".")[0] for warning in describe_ignored_parameters(f"postgresql://db/app?{query}")]

    assert named == ["DATABASE_URL: asyncpg ignores channel_binding=require"] * is_named


def test_hosts_are_split_with_the_rest_of_the_url() -> None:
    urls = split_hosts("postgresql://app:p%40@a:1,[::1]:2,%2Frun/app?sslmode=require")

    assert urls == [f"postgresql://app:p%40@{host}/app?sslmode=require" for host in ("a:1", "[::1]:2", "%2Frun")]


@pytest.mark.parametrize(
    ("url", "description"),
    [
        ("postgresql://app:hunter2@a,b:6432/my%20app?password=hunter2", "a,b:6432/my app"),
        ("postgresql://app:hunter2@%2Frun%2Fpostgresql/app", "/run/postgresql/app"),
        ("postgresql:/app", "/app"),
        ("sqlite+aiosqlite:///data/app.db", "data/app.db"),
        ("sqlite+aiosqlite:////data/app.db", "/data/app.db"),
    ],
)
def test_description_of_a_database_has_no_credentials(url: str, description: str) -> None:
    assert describe_database(url) == description


@pytest.mark.parametrize(
    "url",
    [
        "redis://cache",
        "redis://cache:6380/1",
        "redis://:secret@cache:6379",
        "redis://default:p%40ss@cache-1.example.com:6379/0",
        "rediss://default:secret@cache:6380?ssl_cert_reqs=none",  # Heroku
        "redis://[::1]:6379",
        "unix:///run/redis.sock?db=1",
        "redis://cache?protocol=3&health_check_interval=30&max_connections=5",
    ],
)
def test_redis_url_is_accepted(url: str) -> None:
    assert check_redis_url(SecretStr(url)).get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "cache:6379",
        "http://cache",
        "redis://",
        "redis://:hunter2@",
        "redis://cache:hunter2",
        "redis://cache:70000",
        "redis://:hunter@2@cache",
        "redis://:hunter#2@cache",
        "redis://:hunter/2@cache",
        "redis://:hunter?2@cache",
        "redis://default:84/hunter2@cache",
        "redis://default:84?hunter2@cache",
        "redis://cache?db=hunter2",
        "redis://cache?hunter2=1",
        "redis://cache?ssl_cert_reqs=none",
        "rediss://cache?ssl_cert_reqs=hunter2",
    ],
)
def test_invalid_redis_url_is_refused_and_nothing_is_repeated(url: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared
        check_redis_url(SecretStr(url))

    assert str(caught.value) == REDIS
