"""Every setting of the service, read from environment variables, `.env` files and secret files."""

import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from app.setting_types import (
    SMTPURL,
    CommaSeparated,
    DatabaseURL,
    Host,
    LogLevel,
    MailSender,
    Networks,
    Origin,
    PageURL,
    PreviousSecretKey,
    PublicURL,
    Rate,
    RedisURL,
    RootPath,
    Seconds,
    SecretKey,
    WebDatabaseURL,
)


class SettingsFiles(BaseSettings):
    """The settings that determine which files the other settings are read from."""

    model_config = SettingsConfigDict(
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    environment: Literal["development", "test", "production"] = Field(
        "development",
        description="`production` refuses unsafe settings; also selects a second file, `.env.<ENVIRONMENT>`",
    )
    secrets_dir: Path = Field(
        Path("/run/secrets"), description="Directory of secret files, each named after its variable"
    )


class Settings(SettingsFiles):
    """All settings. Each is read from the environment variable of the same name, in upper case."""

    # Server: read by gunicorn.conf.py
    host: str = Field("0.0.0.0", pattern=r"^\S+$", description="IP address to listen on; `::` for IPv6 and IPv4")  # noqa: S104  in a container
    port: int = Field(8000, ge=1, le=65535, description="TCP port that gunicorn listens on")
    web_concurrency: int | None = Field(
        None, ge=1, description="Worker processes; by default 2 x CPUs + 1, within the container's CPU quota"
    )
    max_requests: int = Field(1000, ge=0, description="Requests after which a worker is replaced; 0 for never")
    max_requests_jitter: int = Field(
        100, ge=0, description="Random extra requests per worker, so that workers are not all replaced at once"
    )
    keepalive_seconds: int = Field(
        5,
        ge=1,
        description="Seconds that an idle connection is kept open; must be longer than in the proxy in front",
    )
    drain_seconds: int = Field(
        0,
        ge=0,
        description="Seconds to keep serving after SIGTERM with readiness failing, so that load balancers stop sending "
        "traffic",
    )
    forwarded_allow_ips: Networks = Field(
        ["127.0.0.1", "::1"],
        description="Comma-separated addresses or networks of the proxies whose X-Forwarded-* headers are trusted",
    )
    root_path: RootPath = Field("", description="Path prefix that the proxy strips, such as `/api`")
    ssl_keyfile: Path | None = Field(
        None, description="TLS private key (PEM); enables HTTPS together with SSL_CERTFILE"
    )
    ssl_certfile: Path | None = Field(None, description="TLS certificate chain (PEM)")

    # Database
    database_url: DatabaseURL = Field(
        SecretStr("sqlite+aiosqlite:///data/app.db"), description="URL of a PostgreSQL or SQLite database"
    )
    database_pool_size: int = Field(
        5, ge=1, description="Connections per worker for requests; the readiness check has one more"
    )
    database_pool_timeout: Seconds = Field(2, description="Seconds to wait for a free connection before responding 503")
    # Shorter than the default of `database_pool_timeout`, so that during an outage, a connection attempt fails before
    # the requests that wait for a free connection time out.
    database_connect_timeout: Seconds = Field(1.5, description="Seconds to wait for a new connection")
    database_statement_timeout: Seconds = Field(5, description="Seconds after which a statement is cancelled")
    database_migrate: bool | None = Field(
        None, description="Migrate the schema at startup; by default only on SQLite, else run `python -m app migrate`"
    )

    web_database_url: WebDatabaseURL | None = Field(
        None,
        description="For `python -m app migrate`: the service's own DATABASE_URL, whose role it creates",
    )

    # Redis
    redis_url: RedisURL | None = Field(
        None, description="Redis URL; limits then count for all containers together, and readiness reports its state"
    )

    # Authentication
    secret_key: SecretKey = Field(
        SecretStr(""),
        description="Signs access tokens; at least 32 bytes; required in production, elsewhere random at each start",
    )
    secret_key_previous: PreviousSecretKey = Field(
        None, description="The SECRET_KEY before the last change, which is still accepted"
    )
    access_token_minutes: int = Field(15, ge=1, le=525_600, description="Lifetime of an access token in minutes")
    refresh_token_days: int = Field(30, ge=1, le=3650, description="Lifetime of an unused refresh token in days")
    refresh_overlap_seconds: int = Field(
        10, ge=0, le=300, description="Seconds during which a used refresh token still returns the same new token"
    )
    # OWASP's first recommendation: https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html
    argon2_time_cost: int = Field(2, ge=1, description="Argon2id iterations")
    argon2_parallelism: int = Field(1, ge=1, description="Argon2id degree of parallelism")
    argon2_memory_kib: int = Field(19_456, description="Argon2id memory per hash in KiB")
    argon2_concurrency: int | None = Field(
        None, ge=1, description="Hashes that a worker computes at a time; by default 2, or 1 if memory is short"
    )

    # Mail
    mail: bool = Field(True, description="Send email; `off` also removes the routes that need it")
    smtp_url: SMTPURL | None = Field(
        None,
        description="Mail server: `smtps://user:password@host:port`, `smtp+starttls://` or, without TLS, `smtp://`; "
        "required in production, elsewhere emails are printed to the log",
    )
    mail_from: MailSender = Field(
        "no-reply@example.com", description="Sender of all emails, with or without a name; required in production"
    )
    public_url: PublicURL = Field(
        "http://127.0.0.1:8000",
        description="URL at which users reach the service, for the links in emails; required in production",
    )

    # Accounts
    registration: Literal["open", "closed"] = Field(
        "open", description="`closed` rejects registrations, so that only superusers add users, by invitation"
    )
    require_verified_email: bool = Field(False, description="Log in only users whose email address is verified")
    password_reset_minutes: int = Field(60, ge=1, le=10_080, description="Lifetime of a link to reset a password")
    email_verification_hours: int = Field(24, ge=1, le=720, description="Lifetime of a link to verify an address")
    invitation_days: int = Field(7, ge=1, le=365, description="Lifetime of a link in an invitation")
    password_reset_url: PageURL | None = Field(
        None, description="Page for setting a password, which links then lead to; by default one of the service"
    )
    email_verification_url: PageURL | None = Field(
        None, description="Page for verifying an address, which links then lead to; by default one of the service"
    )

    # HTTP
    max_body_size: int = Field(1_048_576, ge=0, description="Maximum size of a request body in bytes")
    max_total_body_size: int = Field(
        16_777_216, ge=0, description="Maximum memory in bytes for the request bodies that a worker holds at a time"
    )
    rate_limit: Rate = Field("600/minute", description="Requests allowed per client IP address")
    rate_limit_login: Rate = Field(
        "10/minute", description="Login attempts allowed per client IP address, and per account"
    )
    rate_limit_register: Rate = Field(
        "30/minute", description="Registrations and updates of `/users/me` allowed per client IP address"
    )
    rate_limit_mail: Rate = Field("10/minute", description="Requests for an email allowed per client IP address")
    rate_limit_recipient: Rate = Field(
        "3/hour", description="Emails of one kind allowed per recipient; further ones are not sent"
    )
    cors_origins: Annotated[list[Origin], *CommaSeparated] = Field(
        [], description="Comma-separated origins whose pages may call the API"
    )
    allowed_hosts: Annotated[list[Host], *CommaSeparated] = Field(
        [],
        description="Comma-separated host names to accept in the Host header, `*.example.com` for subdomains, `*` for "
        "any; required in production; otherwise any host is accepted; health checks always accept any",
    )
    docs: bool = Field(True, description="Serve /docs, /redoc and /openapi.json")

    # Logging
    log_level: LogLevel = Field("info", description="Minimum log level")
    log_format: Literal["json", "console"] | None = Field(
        None, description="`json` or `console`; by default `console` on a terminal outside production"
    )

    @property
    def is_production(self) -> bool:
        return self.environment == "production"

    @property
    def is_sqlite(self) -> bool:
        return self.database_url.get_secret_value().startswith("sqlite")

    @property
    def migrates_at_startup(self) -> bool:
        return self.is_sqlite if self.database_migrate is None else self.database_migrate

    @field_validator("ssl_certfile")
    @classmethod
    def _require_both_tls_files(cls, certfile: Path | None, info: ValidationInfo) -> Path | None:
        if (certfile is None) != (info.data.get("ssl_keyfile") is None):
            raise ValueError("must be set together with SSL_KEYFILE")
        return certfile

    @field_validator("argon2_memory_kib")
    @classmethod
    def _require_argon2_minimum(cls, memory: int, info: ValidationInfo) -> int:
        if memory < 8 * info.data.get("argon2_parallelism", 1):  # RFC 9106, section 3.1
            raise ValueError("must be at least 8 times ARGON2_PARALLELISM")
        return memory

    @field_validator("database_url")
    @classmethod
    def _require_postgresql_in_production(cls, url: SecretStr, info: ValidationInfo) -> SecretStr:
        if info.data.get("environment") == "production" and url.get_secret_value().startswith("sqlite"):
            raise ValueError("must be PostgreSQL in production; SQLite is for development")
        return url

    @field_validator("cors_origins")
    @classmethod
    def _require_named_origins_in_production(cls, origins: list[str], info: ValidationInfo) -> list[str]:
        if info.data.get("environment") == "production" and "*" in origins:
            raise ValueError("must name each origin in production, not *")
        return origins

    @field_validator("allowed_hosts")
    @classmethod
    def _require_hosts_in_production(cls, hosts: list[str], info: ValidationInfo) -> list[str]:
        if info.data.get("environment") == "production" and not hosts:
            raise ValueError("must be set in production: to the host names, or to * if a proxy checks them")
        return hosts

    @field_validator("smtp_url", "mail_from", "public_url")
    @classmethod
    def _require_for_mail_in_production(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401  of three fields
        sends_mail = info.data.get("environment") == "production" and info.data.get("mail", True)
        if sends_mail and value == cls.model_fields[str(info.field_name)].default:
            raise ValueError("must be set in production to a value other than the default, unless MAIL=off")
        return value

    @field_validator("require_verified_email")
    @classmethod
    def _require_mail_for_verification(cls, is_required: bool, info: ValidationInfo) -> bool:
        if is_required and not info.data.get("mail", True):
            raise ValueError("needs mail, which is switched off")
        return is_required

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  the library's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Give secret files precedence over environment variables.

        The container image sets the variable DATABASE_URL, which a secret file must be able to override.
        """
        return init_settings, file_secret_settings, env_settings, dotenv_settings


def load_settings() -> Settings:
    """Read the settings, or exit with a message that lists every problem without revealing any values.

    Later sources override earlier ones: `.env`, `.env.<ENVIRONMENT>`, the environment, and the files in SECRETS_DIR.

    Raises:
        SystemExit: A setting is not valid, or a file cannot be read.
    """
    env_files: tuple[str, ...] = (".env",)
    try:
        environment = SettingsFiles(_env_file=env_files).environment
        env_files += (f".env.{environment}",)
        secrets_dir = SettingsFiles(_env_file=env_files).secrets_dir
        # Treat warnings as errors. pydantic-settings merely warns when it skips a secret file, for example because
        # Docker has created a directory in its place.
        with warnings.catch_warnings(action="error", category=UserWarning):
            settings = Settings(_env_file=env_files, _secrets_dir=secrets_dir if secrets_dir.is_dir() else None)
    except ValidationError as error:
        problems = (
            f"\n  {str(problem['loc'][0]).upper()}: {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_url=False, include_input=False)
        )
        raise SystemExit("The settings are not valid:" + "".join(sorted(problems))) from None
    except UnicodeDecodeError as error:
        raise SystemExit(f"{' or '.join(env_files)} is not valid UTF-8") from error
    except (OSError, SettingsError) as error:
        reason = f": {error.__cause__}" if error.__cause__ else ""
        raise SystemExit(f"The settings cannot be read: {error}{reason}") from error
    if settings.environment != environment:
        raise SystemExit("ENVIRONMENT must be set in the environment or in `.env`, because it names the other files")
    return settings
