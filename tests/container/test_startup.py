"""Pending, concurrent and failing migrations are handled correctly when containers start."""

from contextlib import ExitStack

from tests.conftest import ROOT
from tests.container.conftest import Database
from tests.container.engine import run_container
from tests.container.service import CONFLICTING_TABLE, options, run_service, wait_for_workers


def test_failed_migration_exits_with_one_error_line(image: str, database: Database) -> None:
    database.query(CONFLICTING_TABLE)

    with run_container(image, *options(DATABASE_URL=database.url, DATABASE_MIGRATE="true")) as container:
        assert container.wait_for_exit() == 1

        (line,) = [line for line in container.log_lines if line["level"] not in {"info", "debug"}]
        assert line["level"] == "critical"
        assert line["event"].startswith("Migration 0001 failed at `CREATE TABLE users ")
        assert line["event"].endswith('relation "users" already exists. Nothing was changed')
        assert "\n" not in line["event"]
        assert "Booting worker" not in container.log


def test_service_with_pending_migration_exits_and_names_the_command(image: str, database: Database) -> None:
    with run_container(image, *options(DATABASE_URL=database.url)) as container:
        assert container.wait_for_exit() == 1

        (line,) = [line for line in container.log_lines if line["level"] not in {"info", "debug"}]
        assert line["event"] == "The database's schema is not up to date: run `python -m app migrate`"


def test_five_containers_starting_at_once_migrate_once(image: str, database: Database) -> None:
    settings = options(DATABASE_URL=database.url, DATABASE_MIGRATE="true", WEB_CONCURRENCY="1")
    with ExitStack() as stack:
        containers = [stack.enter_context(run_container(image, *settings)) for _ in range(5)]
        for container in containers:
            wait_for_workers(container, 1)

        lines = [line for container in containers for line in container.log_lines]

    revisions = sorted(path.name[:4] for path in (ROOT / "app/migrations/versions").glob("*.py"))
    assert {line["level"] for line in lines} == {"info"}
    assert [line["revision"] for line in lines if line["event"] == "migration"] == revisions


def test_too_small_limit_on_processes_is_logged(image: str) -> None:
    with run_service(image, "--pids-limit=30", WEB_CONCURRENCY="2") as container:
        container.wait_for_log("2 workers may need 37 processes and threads, but the limit is 30: raise it (`pids`)")
