"""The commands in docs/operations.md work on the production Compose project."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from urllib.parse import urlsplit

import httpx
import pytest
from processes import TIMEOUT, until

from app import PREFIX
from tests.conftest import NO_LIMIT
from tests.container.engine import Compose
from tests.container.load import Target, continue_load, load
from tests.container.production import log_in, production_project, query, run
from tests.container.service import CREDENTIALS, PERSON
from tests.container.service import log_in as get_auth
from tests.pages import blocks, command

# Example values in the documentation.
EMAIL, USER_ID, PID, BACKUP = "user@example.com", "42", "12345", "backup-2026-11-29"

DISCONNECT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'app'"


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[Compose]:
    """The running project, with one registered user."""
    with production_project(tmp_path_factory.mktemp("host"), image) as compose:
        with compose.file.with_name(".env.production").open("a") as settings:
            settings.write(f"RATE_LIMIT={NO_LIMIT}\nRATE_LIMIT_LOGIN={NO_LIMIT}\n")
        run(compose, command("up"))
        httpx.post(f"{compose.url}/users/", json=PERSON, timeout=TIMEOUT).raise_for_status()
        yield compose


def read_me(compose: Compose, auth: dict[str, str]) -> int:
    """Request `/users/me`, and return the status."""
    return httpx.get(f"{compose.url}/users/me", headers=auth, timeout=TIMEOUT).status_code


@contextmanager
def locked_tables(compose: Compose) -> Iterator[None]:
    """Lock the tables of users and logins in a sleeping psql session. End the session when the `with` block ends."""
    script = ["docker", "exec", compose.container("db").name, "psql", "--username=app"]
    script += ["--command=BEGIN", "--command=LOCK TABLE users, refresh_tokens", "--command=SELECT pg_sleep(3600)"]
    with subprocess.Popen(script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: query(compose, "SELECT pid FROM pg_locks WHERE mode = 'AccessExclusiveLock'"), "it is locked")
        try:
            yield
        finally:  # the end of `docker exec` would not end psql
            query(
                compose, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(3600)'"
            )
            process.wait(TIMEOUT)


def test_first_look_shows_containers_and_readiness(production: Compose) -> None:
    port = str(urlsplit(production.url).port)

    output = run(production, command("first-look").replace("${WEB_PORT:-8000}", port))

    assert "Up" in output
    assert '{"status":"ready","database":"connected","redis":"connected"}' in output


def test_blocked_queries_are_found_and_ended(production: Compose) -> None:
    with locked_tables(production):
        status = httpx.get(f"{production.url}/health/ready", timeout=TIMEOUT).status_code
        assert httpx.post(f"{production.url}/auth/login", json=CREDENTIALS, timeout=TIMEOUT).status_code == 503

        output = run(production, command("blocked"))

        pid = query(production, "SELECT DISTINCT pid FROM pg_locks WHERE mode = 'AccessExclusiveLock'")
        assert pid in output
        run(production, command("terminate").replace(PID, pid))
        until(lambda: log_in(production).status_code == 200, "the lock is released")
    assert status == 200


def test_load_of_the_containers_is_shown(production: Compose) -> None:
    output = run(production, command("load"))

    assert "load average" in output
    assert f"{production.name}-web-1" in output


def test_disk_usage_is_shown_and_expired_logins_are_deleted(production: Compose) -> None:
    get_auth(production.url)
    query(production, "UPDATE refresh_tokens SET expires_at = now() - interval '1 day'")

    output = run(production, command("disk"))
    run(production, command("delete-expired-logins"))

    assert "refresh_tokens" in output
    assert query(production, "SELECT count(*) FROM refresh_tokens") == "0"


def test_waiting_mails_are_shown(production: Compose) -> None:
    query(
        production,
        "INSERT INTO mails VALUES (gen_random_uuid(), 'password_reset', 'a@example.com', '{}', now(), now(), 3)",
    )

    output = run(production, command("waiting-mails"))

    query(production, "DELETE FROM mails")
    assert "password_reset |     1 |" in output


def test_restarting_container_logs_its_error_and_can_be_inspected(production: Compose) -> None:
    file = production.file.with_name(".env.production")
    settings = file.read_text()
    file.write_text(settings + "RATE_LIMIT=often\n")
    production("up", "--detach", "--no-deps", "web")
    production.container("web").wait_for_log("RATE_LIMIT")

    last_words = run(production, command("last-words"))
    user_id = run(production, "echo 'id -u' | " + command("shell")).splitlines()[-1]

    file.write_text(settings)
    run(production, command("up"))
    assert "RATE_LIMIT: must be like 600/minute" in last_words
    assert user_id == "10001"


def test_web_starts_again_after_other_containers_ran_while_it_was_restarting(production: Compose) -> None:
    run(production, command("undo-migration"))
    production("restart", "web")
    web = production.container("web")
    shell = ["bash", "-euc", command("compose-file") + command("shell")]
    environment = {**os.environ, **production.variables, "COMPOSE_PROJECT_NAME": production.name}
    with subprocess.Popen(
        shell, cwd=production.file.parent, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("id -u\n")
        process.stdin.flush()
        assert process.stdout.readline() == "10001\n"
        restarts = int(web.inspect("{{.RestartCount}}"))
        # The count rises each time `web` exits. The first exit may end a run that began before the shell. Before the
        # second exit, `web` must have started while the shell was running.
        until(lambda: int(web.inspect("{{.RestartCount}}")) >= restarts + 2, "it restarts while the shell runs")
    assert "schema is not up to date" in web.log

    run(production, command("migrate"))

    until(lambda: web.inspect("{{.State.Health.Status}}") == "healthy", "it has started by itself")


def test_health_checks_are_shown_and_the_service_is_restarted(production: Compose) -> None:
    web = production.container("web")
    started_at = web.inspect("{{.State.StartedAt}}")

    output = run(production, command("health"))

    assert re.match("(0|1|137) ", output)  # the exit code of a health check comes first; 137 if the check was killed
    assert web.inspect("{{.State.StartedAt}}") > started_at
    web.wait_until_healthy()


def test_logs_tell_the_reason_of_401_and_the_requests_of_a_user(production: Compose) -> None:
    user_id = query(production, f"SELECT id FROM users WHERE email = '{PERSON['email']}'")
    read_me(production, get_auth(production.url))
    read_me(production, {"Authorization": "Bearer forged"})

    reasons = run(production, command("why-401"))
    requests = run(production, command("requests-of-user").replace(EMAIL, PERSON["email"]).replace(USER_ID, user_id))

    assert '"reason": "malformed token"' in reasons
    assert f'"path": "{PREFIX}/users/me"' in requests


def test_log_driver_can_be_changed(production: Compose) -> None:
    (block,) = [block for block in blocks() if block.title == "journald.yml"]
    folder = production.file.parent
    (folder / block.title).write_text(block.text)

    config = production.run(f"COMPOSE_FILE={production.file.name}:{block.title} docker compose config --format json")

    assert json.loads(config)["services"]["web"]["logging"] == {"driver": "journald"}


def test_migration_is_reverted_and_applied_again(production: Compose) -> None:
    latest = query(production, "SELECT version_num FROM alembic_version")

    run(production, command("undo-migration"))
    assert query(production, "SELECT version_num FROM alembic_version") < latest

    run(production, command("migrate"))
    assert query(production, "SELECT version_num FROM alembic_version") == latest


def test_migration_that_waits_for_a_lock_names_its_holder(production: Compose) -> None:
    run(production, command("undo-migration"))
    with locked_tables(production):
        with pytest.raises(AssertionError, match=r"The lock is held by pid \d+ \(psql\)") as failed:
            run(production, command("migrate"))

        pid = re.findall(r"held by pid (\d+)", str(failed.value))[-1]
        run(production, command("terminate").replace(PID, pid) + command("migrate"))

    assert log_in(production).status_code == 200


def test_restore_replaces_everything_with_the_backup(production: Compose) -> None:
    # PostgreSQL allows every role to create large objects. They belong to no schema, so DROP SCHEMA keeps them.
    query(production, "SELECT lo_create(4711)")
    run(production, command("backup"))
    backup = f"backup-{datetime.now().astimezone():%F}"
    assert oct(production.file.with_name(backup).stat().st_mode).endswith("600")
    query(production, "SELECT lo_create(4712)")
    query(production, "DELETE FROM users")
    # A later release may have added a table with a foreign key to the `users` table.
    query(production, "CREATE TABLE later (user_id bigint REFERENCES users)")

    run(production, command("restore").replace(BACKUP, backup))

    assert log_in(production).status_code == 200
    assert query(production, "SELECT to_regclass('later') IS NULL") == "t"
    assert query(production, "SELECT oid FROM pg_largeobject_metadata") == "4711"


@pytest.mark.parametrize(
    ("database", "statement", "repair"),
    [
        ("postgres", "DROP DATABASE app WITH (FORCE)", command("create-database") + command("restore")),
        ("app", "DROP SCHEMA public CASCADE", command("restore")),
    ],
    ids=["database", "schema"],
)
def test_dropped_database_returns_503_until_it_is_restored(
    production: Compose, database: str, statement: str, repair: str
) -> None:
    run(production, command("backup"))
    production("exec", "-T", "db", "psql", "-U", "app", database, f"--command={statement}")
    during_outage = log_in(production)

    run(production, repair.replace(BACKUP, f"backup-{datetime.now().astimezone():%F}"))

    assert during_outage.status_code == 503
    assert log_in(production).status_code == 200


def test_incidents_under_load_return_only_503_and_log_only_json(production: Compose) -> None:
    url = urlsplit(production.url)
    assert url.hostname
    assert url.port
    auth = get_auth(production.url)
    run(production, command("backup"))
    web = production.container("web")
    earlier = len(web.log_lines)  # ignore lines from the tests above
    with load(Target(url.hostname, url.port, f"{url.path}/users/me", auth)) as report:
        run(production, command("restore").replace(BACKUP, f"backup-{datetime.now().astimezone():%F}"))
        continue_load(report)
        administer(production, "ALTER DATABASE app ALLOW_CONNECTIONS false", DISCONNECT)
        time.sleep(2)
        administer(production, "ALTER DATABASE app RENAME TO elsewhere")
        time.sleep(2)
        administer(production, "ALTER DATABASE elsewhere RENAME TO app", "ALTER DATABASE app ALLOW_CONNECTIONS true")
        continue_load(report)
        administer(production, "ALTER ROLE web NOLOGIN", DISCONNECT)
        time.sleep(2)
        run(production, command("migrate"))
        continue_load(report)
        production("pause", "db")
        time.sleep(2)
        production("unpause", "db")
        continue_load(report)
        production("restart", "db")
        continue_load(report, seconds=3)

    assert {response.status for response in report.error_responses} == {503}
    assert len(report.failures) == len(report.error_responses)  # no connection was reset, and no request timed out
    assert {line["level"] for line in web.log_lines[earlier:]} == {"info", "warning"}  # all lines are JSON


def administer(compose: Compose, *statements: str) -> None:
    """Run SQL statements as PostgreSQL's superuser, connected to a database that the service does not use."""
    commands = [f"--command={statement}" for statement in statements]
    compose("exec", "-T", "db", "psql", "-U", "app", "postgres", "--set=ON_ERROR_STOP=1", *commands)


def test_damaged_backup_changes_nothing(production: Compose) -> None:
    run(production, command("backup"))
    backup = production.file.with_name(f"backup-{datetime.now().astimezone():%F}")
    damaged = production.file.with_name("damaged")
    damaged.write_bytes(backup.read_bytes()[:-1000])

    with pytest.raises(AssertionError):
        run(production, command("restore").replace(BACKUP, damaged.name))

    assert log_in(production).status_code == 200


def test_password_is_reset(production: Compose) -> None:
    auth = get_auth(production.url)
    script = command("set-password").replace(EMAIL, PERSON["email"]).replace("exec", "exec -T").strip()

    run(production, f"{script} <<< 'a new password'")

    assert read_me(production, auth) == 401
    assert log_in(production).status_code == 401
    run(production, f"{script} <<< '{PERSON['password']}'")
    assert log_in(production).status_code == 200


@pytest.mark.parametrize(
    "script", [command("end-logins").replace(EMAIL, PERSON["email"]), command("end-all-logins")], ids=["one", "all"]
)
def test_user_is_logged_out(production: Compose, script: str) -> None:
    auth = get_auth(production.url)
    assert read_me(production, auth) == 200

    run(production, script)

    assert read_me(production, auth) == 401


def test_superuser_is_created_in_the_container(production: Compose) -> None:
    arguments = " --email root@example.com --full-name Root <<< 'a good password'"

    run(production, command("compose-superuser").replace("exec", "exec -T").rstrip() + arguments)

    assert query(production, "SELECT is_superuser FROM users WHERE email = 'root@example.com'") == "t"


def test_secret_key_is_rotated_without_logging_anybody_out(production: Compose) -> None:
    auth = get_auth(production.url)

    run(production, command("rotate-secret-key"))
    assert read_me(production, auth) == 200

    run(production, command("forget-previous-key"))
    assert read_me(production, auth) == 401
    assert log_in(production).status_code == 200


def test_database_password_is_changed(production: Compose) -> None:
    before = production.file.with_name("secrets").joinpath("DATABASE_URL").read_text()

    run(production, command("change-database-password"))

    assert production.file.with_name("secrets").joinpath("DATABASE_URL").read_text() != before
    assert log_in(production).status_code == 200


def test_workers_are_replaced_by_a_reload(production: Compose) -> None:
    web = production.container("web")
    starts = web.log.count("Application startup complete.")

    run(production, command("reload"))

    web.wait_for_log("Application startup complete.", times=starts + 3)
    assert log_in(production).status_code == 200
