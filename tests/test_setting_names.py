"""Misspelt setting names in a `.env` file or among the secret files are reported at startup."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.setting_names import COMPOSE_VARIABLES, describe_unknown_names
from app.settings import Settings
from tests.conftest import ROOT, make_settings


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_misspelt_name_in_env_file_suggests_setting(directory: Path) -> None:
    (directory / ".env").write_text("RATE_LIMT=5/minute\nrate_limit_login=5/minute\n")
    (directory / ".env.test").write_text("ZZZ=1\nDATABASE_URI=\n")

    assert describe_unknown_names(make_settings()) == [
        "RATE_LIMT is not a setting; did you mean RATE_LIMIT?",
        "ZZZ is not a setting",
        "DATABASE_URI is not a setting; did you mean DATABASE_URL?",
    ]


def test_misspelt_name_is_logged_at_startup(directory: Path) -> None:
    (directory / ".env").write_text("RATE_LIMT=5/minute\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ENVIRONMENT": "development"}

    started = subprocess.run(
        [sys.executable, "-c", "import app.main"], env=environment, capture_output=True, text=True, check=True
    )

    assert "RATE_LIMT is not a setting; did you mean RATE_LIMIT?" in started.stdout + started.stderr


def test_misspelt_secret_file_suggests_setting(directory: Path) -> None:
    secrets = directory / "secrets"
    (secrets / "kubernetes.io").mkdir(parents=True)
    for name in ("SECRET_KEYS", "DATABASE-URL", "database_url", "..data", "POSTGRES_PASSWORD"):
        (secrets / name).write_text("x")

    warnings = describe_unknown_names(make_settings(secrets_dir=secrets))

    assert sorted(warnings) == [
        "DATABASE-URL is not a setting; did you mean DATABASE_URL?",
        "SECRET_KEYS is not a setting; did you mean SECRET_KEY?",
    ]


def test_names_of_other_programs_are_not_reported(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / ".env").write_text(
        "OTEL_SERVICE_NAME=x\nWEB_PORT=8001\nCOMPOSE_PROJECT_NAME=x\nPGHOST=x\nUV_CACHE_DIR=x\n"
    )
    monkeypatch.setenv("RATE_LIMT", "5/minute")  # environment variables are not checked

    assert describe_unknown_names(make_settings()) == []


def test_example_file_contains_only_settings(directory: Path) -> None:
    (directory / ".env").write_text((ROOT / ".env.example").read_text().replace("# ", ""))

    assert not [warning for warning in describe_unknown_names(make_settings()) if "did you mean" in warning]


def test_variables_of_compose_files_are_known() -> None:
    text = "".join(path.read_text() for path in ROOT.glob("docker-compose*.yml"))
    variables = set(re.findall(r"\$\{(\w+)", text)) | set(re.findall(r"secrets/(\w+)", text))

    assert variables - {name.upper() for name in Settings.model_fields} == COMPOSE_VARIABLES
