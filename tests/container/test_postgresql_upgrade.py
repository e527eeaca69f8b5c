"""The commands in docs/operations.md upgrade PostgreSQL to the next major version."""

from datetime import datetime
from pathlib import Path

import httpx
import pytest
from processes import TIMEOUT

from tests.container.conftest import POSTGRESQL
from tests.container.engine import run_docker
from tests.container.production import log_in, production_project, query, run
from tests.container.service import PERSON
from tests.container.service import log_in as get_auth
from tests.pages import command

# The example name in the documentation.
BACKUP = "backup-2026-11-29"


@pytest.fixture(scope="module")
def postgresql_17(docker: None) -> str:  # noqa: ARG001  skips the test if there is no Docker engine
    """The name of an image with PostgreSQL 17."""
    return run_docker("build", "--quiet", Path(__file__).with_name("postgresql17"))


def test_postgresql_17_is_upgraded_to_18_and_back(tmp_path: Path, image: str, postgresql_17: str) -> None:
    with production_project(tmp_path, image) as compose:
        new_file = compose.file.read_text()
        old_file = new_file.replace(f"image: {POSTGRESQL}\n", f"image: {postgresql_17}\n")
        compose.file.write_text(old_file)
        run(compose, command("up"))
        httpx.post(f"{compose.url}/users/", json=PERSON, timeout=TIMEOUT).raise_for_status()
        auth = get_auth(compose.url)
        old_version = query(compose, "SHOW server_version_num")

        run(compose, command("stop-web") + command("backup"))
        compose.file.write_text(new_file)
        run(compose, command("start-database"))
        is_empty = query(compose, "SELECT to_regclass('users') IS NULL")
        restore = command("restore").replace(BACKUP, f"backup-{datetime.now().astimezone():%F}")
        run(compose, restore + command("up"))
        new_version = query(compose, "SHOW server_version_num")
        me = httpx.get(f"{compose.url}/users/me", headers=auth, timeout=TIMEOUT)
        login = log_in(compose)

        run(compose, command("stop-web"))
        compose.file.write_text(old_file)
        run(compose, command("up"))
        after_return = log_in(compose)

    assert (old_version[:2], is_empty, new_version[:2]) == ("17", "t", "18")
    assert (me.status_code, login.status_code, after_return.status_code) == (200, 200, 200)
