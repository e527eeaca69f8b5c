"""Settings come from secret files, environment variables and .env files. One error reports all problems, by name."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from app.setting_types import EXAMPLE_SECRET_KEY
from app.settings import load_settings
from tests.conftest import SECRET_KEY


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without a `.env` file, but with an empty directory for secret files."""
    (tmp_path / "secrets").mkdir()
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path / "secrets"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load_problems() -> dict[str, str]:
    """Load invalid settings, and return the error message for each invalid variable, keyed by variable name."""
    with pytest.raises(SystemExit) as caught:
        load_settings()
    first, *lines = str(caught.value).splitlines()
    assert first == "The settings are not valid:"
    return dict(line.strip().split(": ", 1) for line in lines)


def test_no_setting_is_required_in_development() -> None:
    settings = load_settings()

    assert settings.environment == "development"
    assert settings.port == 8000
    assert settings.is_sqlite
    assert settings.redis_url is None


def test_secret_files_override_environment_which_overrides_env_files(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / ".env").write_text(
        "ENVIRONMENT=test\nPORT=1\nMAX_REQUESTS=1\nWEB_CONCURRENCY=1\nDATABASE_POOL_SIZE=1\n"
    )
    (directory / ".env.test").write_text("MAX_REQUESTS=2\nWEB_CONCURRENCY=2\nDATABASE_POOL_SIZE=2\n")
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    monkeypatch.setenv("DATABASE_POOL_SIZE", "3")
    (directory / "secrets" / "database_pool_size").write_text("4\n")

    settings = load_settings()

    assert settings.environment == "test"
    assert settings.port == 1
    assert settings.max_requests == 2
    assert settings.web_concurrency == 3
    assert settings.database_pool_size == 4


def test_env_file_of_another_environment_is_ignored(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "development")
    (directory / ".env").write_text("ENVIRONMENT=test\n")
    (directory / ".env.test").write_text("PORT=1\n")
    (directory / ".env.development").write_text("MAX_REQUESTS=2\n")

    settings = load_settings()

    assert (settings.port, settings.max_requests) == (8000, 2)


@pytest.mark.parametrize("name", [".env.test", "secrets/environment"])
def test_environment_set_in_a_file_that_it_selects_is_an_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SECRET_KEY", SECRET_KEY)
    (directory / ".env").write_text("ENVIRONMENT=test\n")
    (directory / name).write_text("ENVIRONMENT=development" if name == ".env.test" else "development")

    with pytest.raises(SystemExit, match=r"ENVIRONMENT must be set in the environment or in `\.env`"):
        load_settings()


def test_missing_secrets_directory_is_ignored(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRETS_DIR", str(directory / "missing"))

    assert load_settings().port == 8000


def test_variable_names_are_case_insensitive(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("log_level", "DEBUG")
    (directory / "secrets" / "Port").write_text("9000")

    settings = load_settings()

    assert (settings.log_level, settings.port) == ("debug", 9000)


def test_empty_file_of_the_previous_key_counts_as_not_set(directory: Path) -> None:
    (directory / "secrets" / "SECRET_KEY_PREVIOUS").touch()

    assert load_settings().secret_key_previous is None


def test_empty_variable_counts_as_not_set(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / ".env").write_text("PORT=9000\nREDIS_URL=\n")
    monkeypatch.setenv("PORT", "")

    settings = load_settings()

    assert settings.port == 9000
    assert settings.redis_url is None


@pytest.mark.parametrize("variable", ["SECRET_KEY", "DATABASE_URL", "REDIS_URL"])
def test_empty_secret_file_is_an_error(directory: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv(variable, SECRET_KEY)  # the secret file overrides it
    (directory / "secrets" / variable).write_text("\n")

    assert variable in load_problems()


def test_lists_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ORIGINS", "https://a.example, https://b.example,")

    assert load_settings().cors_origins == ["https://a.example", "https://b.example"]


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://u:p%25@db/x", "postgresql://u:p%25@db/x"),
        ("postgresql://db/x", "postgresql://db/x"),
        ("postgresql+asyncpg://db/x", "postgresql://db/x"),
        ("postgres://db/x?sslmode=require&application_name=a", "postgresql://db/x?sslmode=require&application_name=a"),
        ("postgres://u@/x?host=/var/run/postgresql", "postgresql://u@%2Fvar%2Frun%2Fpostgresql/x"),
        ("postgres://db/x?connect_timeout=10", "postgresql://db/x?connect_timeout=10"),
        ("sqlite:///a.db", "sqlite+aiosqlite:///a.db"),
    ],
)
def test_database_url_is_accepted_as_providers_write_it(monkeypatch: pytest.MonkeyPatch, given: str, used: str) -> None:
    monkeypatch.setenv("DATABASE_URL", given)

    assert load_settings().database_url.get_secret_value() == used


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", "hunter2"),
        ("DATABASE_URL", "mysql://user:hunter2@db/x"),
        ("DATABASE_URL", "postgres://user:hunter2@db:port/x"),
        ("DATABASE_URL", "postgres://user:hunter2@db/x?keepalives=1"),
        ("DATABASE_URL", "sqlite://"),
        ("DATABASE_URL", "sqlite:///:memory:"),
        ("DATABASE_POOL_SIZE", "0"),
        ("DATABASE_STATEMENT_TIMEOUT", "0.0001"),
        ("REDIS_URL", "http://:hunter2@redis"),
        ("REDIS_URL", "redis://redis:hunter2"),
        ("PORT", "hunter2"),
        ("PORT", "65536"),
        ("LOG_LEVEL", "hunter2"),
        ("ENVIRONMENT", "hunter2"),
        ("SECRET_KEY", "hunter2"),
        ("CORS_ORIGINS", "https://a.example,hunter2"),
        ("CORS_ORIGINS", "https://a.example/"),
        ("SECRET_KEY", " " * 40),
        ("ROOT_PATH", "hunter2"),
        ("ROOT_PATH", "/hunter2/"),
        ("ACCESS_TOKEN_MINUTES", "0"),
        ("ACCESS_TOKEN_MINUTES", "1000000000000"),
        ("ARGON2_MEMORY_KIB", "7"),
        ("MAX_BODY_SIZE", "-1"),
        ("ALLOWED_HOSTS", "example.com,*."),
        ("ALLOWED_HOSTS", "*hunter2"),
        ("ALLOWED_HOSTS", "hunter2:8000"),
        ("RATE_LIMIT", "hunter2/minute"),
        ("RATE_LIMIT", "0/minute"),
        ("RATE_LIMIT_LOGIN", "600/fortnight"),
        ("FORWARDED_ALLOW_IPS", "127.0.0.1,*"),
        ("FORWARDED_ALLOW_IPS", "hunter2"),
        ("FORWARDED_ALLOW_IPS", "10.0.0.1/8"),
        ("FORWARDED_ALLOW_IPS", "0.0.0.0/0"),
        ("FORWARDED_ALLOW_IPS", "::/0"),
        ("FORWARDED_ALLOW_IPS", "0.0.0.0/1,128.0.0.0/1"),
        ("FORWARDED_ALLOW_IPS", "0.0.0.0/1,128.0.0.0/2,192.0.0.0/3"),
        ("FORWARDED_ALLOW_IPS", "128.0.0.0/1,10.0.0.0/8,::ffff:0.0.0.0/97"),
        ("FORWARDED_ALLOW_IPS", "::/1,8000::/1"),
        ("FORWARDED_ALLOW_IPS", "::/64"),
        ("FORWARDED_ALLOW_IPS", "::ffff:0:0/96"),
        ("FORWARDED_ALLOW_IPS", "2000::/4,3000::/4"),
    ],
)
def test_invalid_value_is_reported_by_name_only(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)

    problems = load_problems()

    assert list(problems) == [variable]
    assert "hunter2" not in str(problems)


def test_large_networks_of_proxies_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = ["10.0.0.0/8", "172.16.0.0/12", "::ffff:192.168.0.0/112", "2001:db8::/32", "fc00::/7"]
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", ", ".join(networks))

    assert load_settings().forwarded_allow_ips == networks


@pytest.mark.parametrize("variable", ["SSL_KEYFILE", "SSL_CERTFILE"])
def test_tls_key_without_certificate_or_reverse_is_an_error(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "file.pem")

    assert load_problems() == {"SSL_CERTFILE": "must be set together with SSL_KEYFILE"}


def test_unsafe_production_settings_are_all_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("CORS_ORIGINS", "*")
    monkeypatch.setenv("PORT", "nonsense")

    assert set(load_problems()) == {
        "ALLOWED_HOSTS",
        "CORS_ORIGINS",
        "DATABASE_URL",
        "MAIL_FROM",
        "PORT",
        "PUBLIC_URL",
        "SECRET_KEY",
        "SMTP_URL",
    }


@pytest.mark.parametrize("secret", ["", "short", EXAMPLE_SECRET_KEY, f"{EXAMPLE_SECRET_KEY} "])
def test_unsafe_secret_key_is_rejected_in_production(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("DATABASE_URL", "postgresql://db/x")
    monkeypatch.setenv("ALLOWED_HOSTS", "example.com")
    monkeypatch.setenv("MAIL", "off")
    monkeypatch.setenv("SECRET_KEY", secret)

    problems = load_problems()

    assert list(problems) == ["SECRET_KEY"]
    assert not secret or secret not in problems["SECRET_KEY"]


@pytest.mark.parametrize("hosts", ["example.com", "*"])
def test_safe_production_settings_are_accepted(directory: Path, monkeypatch: pytest.MonkeyPatch, hosts: str) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("DATABASE_URL", "postgresql://db/x")
    monkeypatch.setenv("ALLOWED_HOSTS", hosts)
    monkeypatch.setenv("SMTP_URL", "smtps://user:password@mail.example.com")
    monkeypatch.setenv("MAIL_FROM", "Example <no-reply@example.com>")
    monkeypatch.setenv("PUBLIC_URL", "https://example.com/api")
    (directory / "secrets" / "SECRET_KEY").write_text(SECRET_KEY)

    settings = load_settings()

    assert settings.is_production
    assert settings.secret_key == SecretStr(SECRET_KEY)
    assert not settings.migrates_at_startup


@pytest.mark.parametrize("variable", ["SMTP_URL", "MAIL_FROM", "PUBLIC_URL"])
def test_mail_in_production_needs_its_settings(directory: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name, value in {
        "ENVIRONMENT": "production",
        "DATABASE_URL": "postgresql://db/x",
        "ALLOWED_HOSTS": "*",
        "SMTP_URL": "smtp://mail",
        "MAIL_FROM": "no-reply@example.org",
        "PUBLIC_URL": "https://example.org",
    }.items():
        monkeypatch.setenv(name, value)
    (directory / "secrets" / "SECRET_KEY").write_text(SECRET_KEY)
    monkeypatch.delenv(variable)

    assert load_problems() == {variable: "must be set in production to a value other than the default, unless MAIL=off"}
    monkeypatch.setenv("MAIL", "off")
    assert load_settings().is_production


def test_login_with_a_verified_address_only_needs_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUIRE_VERIFIED_EMAIL", "true")
    assert load_settings().require_verified_email
    monkeypatch.setenv("MAIL", "off")

    assert load_problems() == {"REQUIRE_VERIFIED_EMAIL": "needs mail, which is switched off"}


@pytest.mark.parametrize(
    "url", ["example.com", "https://example.com/", "https://example.com/?x", "https://u@example.com", "ftp://x", "//x"]
)
def test_invalid_public_url_is_rejected(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PUBLIC_URL", url)

    assert list(load_problems()) == ["PUBLIC_URL"]


@pytest.mark.parametrize("url", ["example.com", "https://example.com/#x", "https://", "https://example.com/a b"])
def test_invalid_page_is_rejected(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PASSWORD_RESET_URL", url)
    monkeypatch.setenv("EMAIL_VERIFICATION_URL", url)

    assert set(load_problems()) == {"PASSWORD_RESET_URL", "EMAIL_VERIFICATION_URL"}


def test_secret_file_with_invalid_utf8_is_reported_by_name_only(directory: Path) -> None:
    (directory / "secrets" / "secret_key").write_bytes(b"hunter2\xff")

    with pytest.raises(SystemExit, match=r'^The settings cannot be read: .*"secret_key"') as caught:
        load_settings()

    assert "hunter2" not in str(caught.value)


@pytest.mark.filterwarnings("default:attempted to load secret file:UserWarning")
def test_directory_instead_of_secret_file_is_an_error(directory: Path) -> None:
    """Docker creates a directory if the file to mount does not exist."""
    (directory / "secrets" / "REDIS_URL").mkdir()

    with pytest.raises(SystemExit, match=r'^The settings cannot be read: .*"redis_url".*found a directory'):
        load_settings()


@pytest.mark.parametrize(
    ("name", "message"), [(".env", ".env is not valid UTF-8"), (".env.test", ".env or .env.test is not valid UTF-8")]
)
def test_env_file_with_invalid_utf8_is_reported(directory: Path, name: str, message: str) -> None:
    (directory / ".env").write_text("ENVIRONMENT=test")
    (directory / name).write_bytes(b"SECRET_KEY=hunter2\xff")

    with pytest.raises(SystemExit) as caught:
        load_settings()

    assert str(caught.value) == message


def test_default_secret_key_is_random_outside_production() -> None:
    first, second = load_settings(), load_settings()

    assert first.secret_key != second.secret_key
    assert len(first.secret_key.get_secret_value()) >= 32


def test_repr_and_json_contain_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", SECRET_KEY)
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:hunter2@db/x")
    monkeypatch.setenv("REDIS_URL", "redis://:hunter2@redis")

    settings = load_settings()

    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert SECRET_KEY not in shown
        assert "hunter2" not in shown
