"""What happens when the database is not as it should be at the start, or several start at once."""

from contextlib import ExitStack

from tests.conftest import ROOT
from tests.container.conftest import Database
from tests.container.engine import json_lines, running
from tests.container.service import SPOIL, options


def test_a_migration_that_fails_ends_the_container_with_one_line(image: str, database: Database) -> None:
    database.query(SPOIL)

    with running(image, *options(DATABASE_URL=database.url, DATABASE_MIGRATE="true")) as container:
        assert container.ends() == 1

        (line,) = [line for line in json_lines(container.log) if line["level"] not in {"info", "debug"}]
        assert line["level"] == "critical"
        assert database.name in line["event"]
        assert "\n" not in line["event"]
        assert "Booting worker" not in container.log


def test_a_database_that_is_not_migrated_ends_the_container_with_what_to_do(image: str, database: Database) -> None:
    with running(image, *options(DATABASE_URL=database.url)) as container:
        assert container.ends() == 1

        (line,) = [line for line in json_lines(container.log) if line["level"] not in {"info", "debug"}]
        assert line["event"] == "The database's schema is not up to date: run `python -m app migrate`"


def test_five_containers_that_migrate_at_once_are_one_migration(image: str, database: Database) -> None:
    settings = options(DATABASE_URL=database.url, DATABASE_MIGRATE="true", WEB_CONCURRENCY="1")
    with ExitStack() as stack:
        containers = [stack.enter_context(running(image, *settings)) for _ in range(5)]
        for container in containers:
            container.is_healthy()

        lines = [line for container in containers for line in json_lines(container.log)]

    revisions = sorted(path.name[:4] for path in (ROOT / "app/migrations/versions").glob("*.py"))
    assert {line["level"] for line in lines} == {"info"}
    assert [line["revision"] for line in lines if line["event"] == "migration"] == revisions
