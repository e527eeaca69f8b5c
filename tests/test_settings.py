"""Settings come from files, the environment and secrets; what is wrong is said at once, and no value with it."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from app.settings import EXAMPLE_SECRET_KEY, load_settings
from tests.conftest import SECRET_KEY


@pytest.fixture(autouse=True)
def empty_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No .env file, no secret files, and no variable of ours."""
    for variable in SETTINGS_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path / "secrets"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems() -> dict[str, str]:
    """What the refusal says, by variable."""
    with pytest.raises(SystemExit) as caught:
        load_settings()
    first, *lines = str(caught.value).splitlines()
    assert first == "The settings are not valid:"
    return dict(line.strip().split(": ", 1) for line in lines)


def test_nothing_need_be_set() -> None:
    settings = load_settings()

    assert settings.environment == "development"
    assert settings.server.port == 8000
    assert settings.database.is_sqlite
    assert settings.redis.url is None


def test_later_sources_win(empty_surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(["PORT", "MAX_REQUESTS", "WEB_CONCURRENCY", "DATABASE_POOL_SIZE"]):
        everywhere = [".env", ".env.test", "environment", "secrets"][: number + 1]
        for source in everywhere:
            value = str(len(everywhere[: everywhere.index(source) + 1]))
            if source == "environment":
                monkeypatch.setenv(name, value)
            elif source == "secrets":
                (empty_surroundings / "secrets").mkdir()
                (empty_surroundings / "secrets" / name.lower()).write_text(f"{value}\n")
            else:
                with (empty_surroundings / source).open("a") as file:
                    file.write(f"{name}={value}\n")
    with (empty_surroundings / ".env").open("a") as file:
        file.write("ENVIRONMENT=test\n")

    settings = load_settings()

    assert settings.environment == "test"
    assert settings.server.port == 1
    assert settings.server.max_requests == 2
    assert settings.server.web_concurrency == 3
    assert settings.database.pool_size == 4


def test_names_in_the_environment_have_no_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("log_level", "DEBUG")

    assert load_settings().log.level == "debug"


def test_an_empty_value_counts_as_not_set(empty_surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_surroundings / ".env").write_text("PORT=9000\nREDIS_URL=\n")
    monkeypatch.setenv("PORT", "")

    settings = load_settings()

    assert settings.server.port == 9000
    assert settings.redis.url is None


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ORIGINS", "https://a.example, https://b.example,")

    assert load_settings().http.cors_origins == ["https://a.example", "https://b.example"]


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://u:p%25@db/x", "postgresql+asyncpg://u:p%25@db/x"),
        ("postgresql://db/x", "postgresql+asyncpg://db/x"),
        ("postgresql+asyncpg://db/x", "postgresql+asyncpg://db/x"),
        ("postgres://db/x?sslmode=require&channel_binding=require", "postgresql+asyncpg://db/x?ssl=require"),
        ("postgres://u@/x?host=/var/run/postgresql", "postgresql+asyncpg://u@/x?host=%2Fvar%2Frun%2Fpostgresql"),
        ("postgres://db/x?connect_timeout=10", "postgresql+asyncpg://db/x"),
        ("sqlite:///a.db", "sqlite+aiosqlite:///a.db"),
    ],
)
def test_a_database_url_is_taken_as_providers_write_it(monkeypatch: pytest.MonkeyPatch, given: str, used: str) -> None:
    monkeypatch.setenv("DATABASE_URL", given)

    assert load_settings().database.url.get_secret_value() == used


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", "hunter2"),
        ("DATABASE_URL", "mysql://user:hunter2@db/x"),
        ("DATABASE_URL", "postgres://user:hunter2@db:port/x"),
        ("DATABASE_URL", "postgres://user:hunter2@db/x?sslrootcert=/ca.pem"),
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
        ("ARGON2_MEMORY_KIB", "31"),
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
    ],
)
def test_a_bad_value_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)

    found = problems()

    assert list(found) == [variable]
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(("given", "missing"), [("SSL_KEYFILE", "SSL_CERTFILE"), ("SSL_CERTFILE", "SSL_KEYFILE")])
def test_key_and_certificate_come_together(monkeypatch: pytest.MonkeyPatch, given: str, missing: str) -> None:
    monkeypatch.setenv(given, "file.pem")

    assert list(problems()) == [missing]


def test_production_refuses_what_is_unsafe_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("CORS_ORIGINS", "*")
    monkeypatch.setenv("PORT", "nonsense")

    assert set(problems()) == {"ALLOWED_HOSTS", "CORS_ORIGINS", "DATABASE_URL", "PORT", "SECRET_KEY"}


@pytest.mark.parametrize("secret", ["", "short", EXAMPLE_SECRET_KEY, f"{EXAMPLE_SECRET_KEY} "])
def test_production_refuses_a_bad_secret(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("DATABASE_URL", "postgresql://db/x")
    monkeypatch.setenv("ALLOWED_HOSTS", "example.com")
    monkeypatch.setenv("SECRET_KEY", secret)

    found = problems()

    assert list(found) == ["SECRET_KEY"]
    assert not secret or secret not in found["SECRET_KEY"]


@pytest.mark.parametrize("hosts", ["example.com", "*"])
def test_production_starts_with_what_is_safe(
    empty_surroundings: Path, monkeypatch: pytest.MonkeyPatch, hosts: str
) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("DATABASE_URL", "postgresql://db/x")
    monkeypatch.setenv("ALLOWED_HOSTS", hosts)
    (empty_surroundings / "secrets").mkdir()
    (empty_surroundings / "secrets" / "SECRET_KEY").write_text(SECRET_KEY)

    settings = load_settings()

    assert settings.in_production
    assert settings.auth.secret_key == SecretStr(SECRET_KEY)
    assert not settings.database.migrates_at_start


def test_a_secret_file_that_cannot_be_read_is_said(empty_surroundings: Path) -> None:
    (empty_surroundings / "secrets").mkdir()
    (empty_surroundings / "secrets" / "secret_key").write_bytes(b"hunter2\xff")

    with pytest.raises(SystemExit, match=r"A secret in .*/secrets cannot be read: UnicodeDecodeError") as caught:
        load_settings()

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", [".env", ".env.test"])
def test_a_file_that_cannot_be_read_is_said(empty_surroundings: Path, name: str) -> None:
    (empty_surroundings / ".env").write_text("ENVIRONMENT=test")
    (empty_surroundings / name).write_bytes(b"SECRET_KEY=hunter2\xff")

    with pytest.raises(SystemExit, match=rf"^{name} cannot be read by user \d+: UnicodeDecodeError$"):
        load_settings()


def test_elsewhere_a_missing_secret_is_random() -> None:
    first, second = load_settings(), load_settings()

    assert first.auth.secret_key != second.auth.secret_key
    assert len(first.auth.secret_key.get_secret_value()) >= 32


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", SECRET_KEY)
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:hunter2@db/x")
    monkeypatch.setenv("REDIS_URL", "redis://:hunter2@redis")

    settings = load_settings()

    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert SECRET_KEY not in shown
        assert "hunter2" not in shown
