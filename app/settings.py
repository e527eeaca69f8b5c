"""Everything that can be set from outside: typed, grouped, and, but for the health check, read here alone."""

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from functools import cached_property
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic import ValidationError as PydanticValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from redis.asyncio.connection import parse_url
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

# RFC 7518, section 3.2: a key for HS256 is at least as long as its output, 32 bytes.
SECRET_KEY_BYTES = 32
# What .env.example and docker-compose.yml say; good enough for a laptop, refused in production.
EXAMPLE_SECRET_KEY = "change-me-to-the-output-of-openssl-rand-hex-32"  # noqa: S105  not a secret, by design


def _database_url(value: SecretStr) -> SecretStr:
    """Names the asynchronous driver, whatever form a hosting provider hands the URL out in."""
    drivers = {
        "postgres": "postgresql+asyncpg",
        "postgresql": "postgresql+asyncpg",
        "sqlite": "sqlite+aiosqlite",
    }
    try:
        url = make_url(value.get_secret_value())
    except (ArgumentError, ValueError):
        raise ValueError("is not a database URL") from None
    url = url.set(drivername=drivers.get(url.drivername, url.drivername))
    if url.drivername not in drivers.values():
        raise ValueError("must begin with postgresql:// or sqlite://")
    if url.drivername == "sqlite+aiosqlite" and url.database in {None, "", ":memory:"}:
        raise ValueError("must name a file, as sqlite:///app.db does")  # in memory, each connection has a database
    # What providers put into the URLs they hand out, in libpq's words. asyncpg has `ssl`, and negotiates the rest.
    sslmode = url.query.get("sslmode")
    url = url.difference_update_query(["sslmode", "channel_binding", "connect_timeout"])
    url = url.update_query_dict({"ssl": sslmode}) if sslmode else url
    if url.query.keys() - {"host", "port", "ssl", "prepared_statement_cache_size"}:
        raise ValueError("takes sslmode, host, port and prepared_statement_cache_size, and nothing else, behind the ?")
    return SecretStr(url.render_as_string(hide_password=False))


def _redis_url(value: SecretStr) -> SecretStr:
    try:
        parse_url(value.get_secret_value())
    except ValueError:  # its message quotes
        raise ValueError("must be like redis://host:6379, rediss:// for TLS, or unix:///path") from None
    return value


def _secret_key(value: SecretStr) -> SecretStr:
    value = SecretStr(value.get_secret_value().strip())
    if len(value.get_secret_value().encode()) < SECRET_KEY_BYTES:
        raise ValueError(f"must have at least {SECRET_KEY_BYTES} bytes; make one with `openssl rand -hex 32`")
    return value


def _rate(value: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,8}/(second|minute|hour|day)", value):
        raise ValueError("must be like 600/minute, with second, minute, hour or day")
    return value


def _root_path(value: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", value):
        raise ValueError("must be like /api, with no slash at its end")
    return value


def _comma_separated(value: object) -> object:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _host(value: str) -> str:
    if not re.fullmatch(r"\*|(\*\.)?[a-z0-9_.-]+|\[[0-9a-f:.]+\]", value := value.lower()):
        raise ValueError("must be names like example.com, or *.example.com, without a port; or *")
    return value


def _origin(value: str) -> str:
    if not re.fullmatch(r"\*|https?://[a-z0-9.-]+(:[0-9]+)?", value):
        raise ValueError("must be origins like https://example.com, with nothing behind the host but a port")
    return value


def _network(value: str) -> str:
    """Uvicorn would take what is no address for a name that nobody has, and `*` for the word of whoever connects."""
    try:
        ip_network(value)
    except ValueError:
        raise ValueError("must be addresses or networks like 10.0.0.0/8, not names and not *") from None
    return value


def _lower_case(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Networks = Annotated[list[Annotated[str, AfterValidator(_network)]], BeforeValidator(_comma_separated)]
Origins = Annotated[list[Annotated[str, AfterValidator(_origin)]], BeforeValidator(_comma_separated)]
Hosts = Annotated[list[Annotated[str, AfterValidator(_host)]], BeforeValidator(_comma_separated)]
RootPath = Annotated[str, AfterValidator(_root_path)]
Rate = Annotated[str, AfterValidator(_rate)]
Seconds = Annotated[float, Field(ge=0.1)]


class Group(BaseModel):
    """Settings that belong together. A field's variable is its name in capitals, behind the group's prefix."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    prefix: ClassVar[str] = ""


class ServerSettings(Group):
    """What gunicorn.conf.py reads."""

    port: int = Field(8000, ge=1, le=65535, description="TCP port that gunicorn listens on")
    web_concurrency: int | None = Field(
        None,
        ge=1,
        description="Worker processes; by default 2 x CPUs + 1, counting the container's CPU quota",
    )
    max_requests: int = Field(1000, ge=0, description="Requests after which a worker is replaced; 0 for never")
    max_requests_jitter: int = Field(
        100, ge=0, description="Up to this many requests more, at random, so that workers do not end together"
    )
    drain_seconds: int = Field(
        0,
        ge=0,
        description="Seconds to serve on after SIGTERM while readiness says no, for the load balancer to notice",
    )
    forwarded_allow_ips: Networks = Field(
        ["127.0.0.1", "::1"],
        description="Comma-separated addresses or networks of the proxies whose X-Forwarded-* headers are believed",
    )
    root_path: RootPath = Field("", description="Path that a proxy takes off before it hands a request on, like `/api`")
    ssl_keyfile: Path | None = Field(None, description="TLS private key (PEM); with SSL_CERTFILE turns on HTTPS")
    ssl_certfile: Path | None = Field(None, description="TLS certificate chain (PEM)")


class DatabaseSettings(Group):
    """How to reach the database, and how much of it one process may use."""

    prefix = "DATABASE_"
    url: Annotated[SecretStr, AfterValidator(_database_url)] = Field(
        SecretStr("sqlite+aiosqlite:///data/app.db"), description="PostgreSQL or SQLite URL"
    )
    pool_size: int = Field(
        5, ge=1, description="Connections a worker may hold open for requests; readiness has one more"
    )
    pool_timeout: Seconds = Field(2, description="Seconds to wait for a free connection before answering 503")
    # Less than the pool's: an attempt that began before the database came back ends before those who wait give up.
    connect_timeout: Seconds = Field(1.5, description="Seconds to wait for a new connection")
    statement_timeout: Seconds = Field(5, description="Seconds after which a statement is cancelled")
    migrate: bool | None = Field(
        None,
        description="Migrate the schema at start; by default only on SQLite, elsewhere `python -m app migrate`",
    )

    @property
    def is_sqlite(self) -> bool:
        """Whether this is the embedded database."""
        return self.url.get_secret_value().startswith("sqlite")

    @property
    def connections(self) -> int:
        """How many a worker opens at most: the pool's, and the one that readiness asks on."""
        return self.pool_size + 1

    @property
    def migrates_at_start(self) -> bool:
        """`migrate`, or its default."""
        return self.is_sqlite if self.migrate is None else self.migrate


class RedisSettings(Group):
    """The optional Redis."""

    prefix = "REDIS_"
    url: Annotated[SecretStr, AfterValidator(_redis_url)] | None = Field(
        None, description="Redis URL; one count for rate limits over all workers, readiness reports its state"
    )


class AuthSettings(Group):
    """Tokens and passwords."""

    secret_key: Annotated[SecretStr, AfterValidator(_secret_key)] = Field(
        default_factory=lambda: SecretStr(secrets.token_urlsafe(SECRET_KEY_BYTES)),
        description="Signs access tokens; at least 32 bytes; must be set in production, random at each start elsewhere",
    )
    access_token_minutes: int = Field(15, ge=1, le=525_600, description="Lifetime of an access token, minutes")
    refresh_token_days: int = Field(30, ge=1, le=3650, description="Lifetime of an unused refresh token, days")
    argon2_memory_kib: int = Field(65536, description="Argon2id memory for one hash, KiB")
    argon2_time_cost: int = Field(3, ge=1, description="Argon2id passes")
    argon2_parallelism: int = Field(4, ge=1, description="Argon2id lanes")


class HTTPSettings(Group):
    """What is let in, from where, and what is shown."""

    max_body_size: int = Field(1_048_576, ge=0, description="Bytes that a request's body may have")
    rate_limit: Rate = Field("600/minute", description="Requests that a client's address may make")
    rate_limit_login: Rate = Field(
        "10/minute", description="Logins that a client's address may try, and that may be tried for one account"
    )
    rate_limit_register: Rate = Field("30/minute", description="Registrations that a client's address may try")
    cors_origins: Origins = Field(
        [], description="Comma-separated origins whose pages may call the API; none by default"
    )
    allowed_hosts: Hosts = Field(
        ["*"],
        description="Comma-separated names in a request's Host header that are answered, `*.example.com` for all below "
        "it, `*` for any; any for health checks; must be set in production",
    )
    docs: bool = Field(True, description="Serve /docs, /redoc and /openapi.json")


class LogSettings(Group):
    """How much is logged, and in what form."""

    prefix = "LOG_"
    level: Annotated[Literal["critical", "error", "warning", "info", "debug"], BeforeValidator(_lower_case)] = Field(
        "info", description="Least severity that is logged"
    )
    format: Literal["json", "console"] | None = Field(
        None, description="`json` or `console`; by default `console` on a terminal outside production"
    )


class Variable(NamedTuple):
    """A variable of the environment, and the field that it sets; the group is empty where the field is at the top."""

    name: str
    group: str
    field: str
    info: FieldInfo


class _Environment(PydanticBaseSettingsSource):
    """Reads DATABASE_URL into `database.url`: outside the names are flat, inside they are grouped.

    Later sources win: `.env`, `.env.<ENVIRONMENT>`, the environment, files in SECRETS_DIR named like the variable.
    An empty value counts as not set, as in `REDIS_URL=`.
    """

    def __call__(self) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for name, group, field, info in Settings.fields():
            value, _, _ = self.get_field_value(info, name)
            if value is not None:
                (data.setdefault(group, {}) if group else data)[field] = value
        return data

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002  the base's
        return self._values.get(field_name.lower()), field_name, False

    @cached_property
    def _values(self) -> dict[str, str | None]:
        """The value of each variable, by its name in lower case."""
        variables = EnvSettingsSource(self.settings_cls).env_vars
        base = self._read_file(".env")
        environment = variables.get("environment") or base.get("environment") or "development"
        overlay = self._read_file(f".env.{environment}")
        values = {**base, **overlay, **variables, "environment": environment}
        return values | _read_secrets(Path(values.get("secrets_dir") or "/run/secrets"))

    def _read_file(self, name: str) -> Mapping[str, str | None]:
        try:
            return DotEnvSettingsSource(self.settings_cls, env_file=name).env_vars
        except (OSError, UnicodeDecodeError) as error:
            raise SystemExit(f"{name} cannot be read by user {os.getuid()}: {type(error).__name__}") from error


def _read_secrets(directory: Path) -> dict[str, str | None]:
    """Docker and Kubernetes mount each secret as one file."""
    if not directory.is_dir():
        return {}
    names = {variable.lower() for variable in Settings.variables()}
    try:
        files = [path for path in directory.iterdir() if path.name.lower() in names]
        return {path.name.lower(): text for path in files if (text := path.read_text().strip())}
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"A secret in {directory} cannot be read: {type(error).__name__}") from error


class Settings(BaseSettings):
    """All settings. Built with no arguments it reads the environment; groups given by hand win over it."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        env_ignore_empty=True,
        env_file_encoding="utf-8",
    )

    environment: Literal["development", "test", "production"] = Field(
        "development",
        description="`production` refuses unsafe settings; also names the second file, `.env.<ENVIRONMENT>`",
    )
    secrets_dir: Path = Field(Path("/run/secrets"), description="Folder of secret files, each named like its variable")
    server: ServerSettings = ServerSettings()
    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    auth: AuthSettings = Field(default_factory=AuthSettings)
    http: HTTPSettings = HTTPSettings()
    log: LogSettings = LogSettings()

    @property
    def in_production(self) -> bool:
        """Whether unsafe settings are refused."""
        return self.environment == "production"

    @classmethod
    def fields(cls) -> Iterator[Variable]:
        """Each setting, as the variable that sets it: `DATABASE_URL`, of the group `database` the field `url`."""
        for name, info in cls.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, Group):
                for field, field_info in info.annotation.model_fields.items():
                    yield Variable(f"{info.annotation.prefix}{field}".upper(), name, field, field_info)
            else:
                yield Variable(name.upper(), "", name, info)

    @classmethod
    def variables(cls) -> set[str]:
        """The names of all variables."""
        return {variable.name for variable in cls.fields()}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: object,
        **__: object,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls)

    @model_validator(mode="after")
    def _judge_what_spans_fields(self) -> Self:
        """Reports each problem as `VARIABLE: problem`, one a line."""
        problems = list(self._unsafe_in_production()) if self.in_production else []
        if (self.server.ssl_keyfile is None) != (self.server.ssl_certfile is None):
            missing = "SSL_KEYFILE" if self.server.ssl_keyfile is None else "SSL_CERTFILE"
            problems.append(f"{missing}: must be set too, HTTPS takes both key and certificate")
        if self.auth.argon2_memory_kib < 8 * self.auth.argon2_parallelism:  # RFC 9106, section 3.1
            problems.append("ARGON2_MEMORY_KIB: must be at least 8 for each of ARGON2_PARALLELISM")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _unsafe_in_production(self) -> Iterator[str]:
        secret = self.auth.secret_key.get_secret_value()
        if "secret_key" not in self.auth.model_fields_set:
            yield "SECRET_KEY: must be set in production; make one with `openssl rand -hex 32`"
        elif secret == EXAMPLE_SECRET_KEY:
            yield "SECRET_KEY: is the example; make one with `openssl rand -hex 32`"
        if self.database.is_sqlite:
            yield "DATABASE_URL: must be PostgreSQL in production, SQLite is for development"
        if "allowed_hosts" not in self.http.model_fields_set:
            yield "ALLOWED_HOSTS: must be set in production, to the names it goes by; or to *, where a proxy knows them"
        if "*" in self.http.cors_origins:
            yield "CORS_ORIGINS: must name each origin in production, not *"


def load_settings() -> Settings:
    """Reads the settings, or ends the process naming every problem at once and never a value.

    Raises:
        SystemExit: with a message for a person, where anything is wrong.
    """
    try:
        return Settings()
    except PydanticValidationError as error:
        problems = _problems(error)
    # The rules for production judge only what is valid by itself. With the faulty values replaced
    # by their defaults they are heard in the same message.
    defaults: dict[str, Any] = {}
    for name, group, field, info in Settings.fields():
        if name in problems:
            (defaults.setdefault(group, {}) if group else defaults)[field] = info.get_default()
    try:
        Settings(**defaults)
    except PydanticValidationError as error:
        problems = _problems(error) | problems
    lines = "".join(f"\n  {variable}: {problem}" for variable, problem in sorted(problems.items()))
    raise SystemExit(f"The settings are not valid:{lines}")


def _problems(error: PydanticValidationError) -> dict[str, str]:
    """What is wrong with which variable. A rule over several fields names its variables itself, one a line."""
    names = {(variable.group, variable.field): variable.name for variable in Settings.fields()}
    problems: dict[str, str] = {}
    for fault in error.errors(include_url=False, include_input=False):
        message = fault["msg"].removeprefix("Value error, ")
        group, field, *_ = fault["loc"] if len(fault["loc"]) > 1 else ("", *fault["loc"], "")
        if name := names.get((str(group), str(field))):
            problems[name] = message
        else:
            problems |= dict(line.split(": ", 1) for line in message.splitlines())
    return problems
