"""If a fork adds a settings class, its tests ignore the developer's environment variables and `.env` file."""

from pathlib import Path

from tests.copies.repository import copy_repository, run

MODULE = """
from pydantic import AliasChoices, BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Provider(BaseModel):
    key: str = "default"


class PaymentSettings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="PAYMENT_", env_file=".env", env_nested_delimiter="__", secrets_dir=".", extra="ignore"
    )

    url: str = "default"
    token: str = Field("default", validation_alias="STRIPE_TOKEN")
    account: str = Field("default", validation_alias=AliasChoices("STRIPE_ACCOUNT", "STRIPE_USER"))
    provider: Provider = Provider()


at_import = PaymentSettings()
"""
TEST = """
from app.payments import PaymentSettings, at_import


def test_settings() -> None:
    values = PaymentSettings().model_dump()

    assert values == at_import.model_dump()
    assert values == dict.fromkeys(["url", "token", "account"], "default") | {"provider": {"key": "default"}}
"""
VARIABLES = """\
PAYMENT_URL=set
STRIPE_TOKEN=set
STRIPE_USER=set
payment_provider__key=set
"""


def test_tests_ignore_environment_env_file_and_secret_files(tmp_path: Path) -> None:
    copy = copy_repository(tmp_path / "copy")
    (copy / "app/payments.py").write_text(MODULE)
    with (copy / "app/api.py").open("a") as api:
        api.write("import app.payments\n")
    (copy / "tests/test_payments.py").write_text(TEST)

    in_environment = run(copy, f"export {VARIABLES.replace(chr(10), ' ')}\npytest tests/test_payments.py")
    (copy / ".env").write_text(VARIABLES)
    (copy / "payment_url").write_text("set")
    in_files = run(copy, "pytest tests/test_payments.py")

    assert "1 passed" in in_environment
    assert "1 passed" in in_files
