"""The production set-up of a single host: what is open, what is secret, what is kept, and how it starts and ends."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from random import randrange

import httpx
import pytest
from processes import PATIENCE, until

from app import NAME
from tests.conftest import ROOT
from tests.container.engine import Compose, cli, composed, json_lines
from tests.container.service import CREDENTIALS, PERSON, SPOIL
from tests.test_readme import BACKUP, MAKE_SECRETS, RECREATE, RESTORE, UP

FILE = "docker-compose.production.yml"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[Callable[[], Compose]]:
    """Makes a project as on a host that has the file, the image and, by the README's command, the secrets."""
    with ExitStack() as stack:

        def make() -> Compose:
            folder = tmp_path_factory.mktemp("host")
            shutil.copy(ROOT / FILE, folder)
            # However careful the host's administrator is, the containers' users must be able to read them.
            subprocess.run(["bash", "-euc", f"umask 077; {MAKE_SECRETS}"], cwd=folder, check=True)
            network = f"10.{randrange(128, 254)}.{randrange(256)}"  # noqa: S311  one that nobody else has, most likely
            return stack.enter_context(composed(folder / FILE, WEB_PORT="0", WEB_NETWORK=network, IMAGE=image))

        yield make


@pytest.fixture(scope="module")
def production(project: Callable[[], Compose]) -> Compose:
    """The project, up, and with somebody in it."""
    compose = project()
    run(compose, UP)
    httpx.post(f"{compose.url}/users/", json=PERSON, timeout=PATIENCE).raise_for_status()
    return compose


def run(compose: Compose, command: str, **variables: str) -> None:
    """Runs a command of the README where the project is."""
    environment = {**os.environ, **compose.variables, **variables, "COMPOSE_PROJECT_NAME": compose.name}
    done = subprocess.run(
        ["bash", "-euc", command], cwd=compose.file.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def query(compose: Compose, statement: str) -> None:
    compose("exec", "-T", "db", "psql", "--username=app", "--dbname=app", "--quiet", f"--command={statement}")


def secrets(compose: Compose) -> dict[str, str]:
    return {file.name: file.read_text().strip() for file in compose.file.with_name("secrets").iterdir()}


def log_in(compose: Compose) -> httpx.Response:
    return httpx.post(f"{compose.url}/auth/login", json=CREDENTIALS, timeout=PATIENCE)


def test_it_is_migrated_before_it_starts_and_serves_users(production: Compose) -> None:
    migration, web = (json.loads(production.container(name).inspect("{{json .State}}")) for name in ("migrate", "web"))
    ready = httpx.get(f"{production.url}/health/ready", timeout=PATIENCE)
    auth = {"Authorization": f"Bearer {log_in(production).json()['access_token']}"}
    me = httpx.get(f"{production.url}/users/me", headers=auth, timeout=PATIENCE)

    assert (migration["Status"], migration["ExitCode"]) == ("exited", 0)
    assert migration["FinishedAt"] < web["StartedAt"]
    assert ready.json() == {"status": "ready", "database": "connected", "redis": "connected"}
    assert me.json()["email"] == PERSON["email"]


def test_gunicorn_serves_with_as_many_workers_as_its_limit_is_good_for(production: Compose) -> None:
    events = [line["event"] for line in json_lines(production.container("web").log)]

    assert "3 workers (2 x 1 CPUs + 1, by the cgroup's CPU quota), at most 24 database connections" in events
    assert {line["level"] for line in json_lines(production.container("web").log)} == {"info"}


def test_nothing_can_be_connected_to_but_the_web_and_that_from_this_host_alone(production: Compose) -> None:
    published = {
        service: json.loads(production.container(service).inspect("{{json .NetworkSettings.Ports}}"))
        for service in ("web", "db", "redis")
    }

    (binding,) = published["web"].pop("8000/tcp")
    assert binding["HostIp"] == "127.0.0.1"
    assert not any(bindings for ports in published.values() for bindings in ports.values())


def test_the_database_and_redis_cannot_reach_the_outside_and_web_can(production: Compose) -> None:
    networks = {
        service: json.loads(production.container(service).inspect("{{json .NetworkSettings.Networks}}"))
        for service in ("web", "db", "redis")
    }

    assert networks["db"].keys() == networks["redis"].keys() == {f"{production.name}_inside"}
    assert cli("network", "inspect", "--format", "{{.Internal}}", f"{production.name}_inside") == "true"
    assert networks["web"].keys() == {f"{production.name}_inside", f"{production.name}_outside"}


def test_no_secret_is_seen_by_who_may_ask_docker(production: Compose) -> None:
    services = ("web", "migrate", "db", "redis")
    seen = [cli("inspect", production.container(service).name) for service in services]
    seen += [production("exec", "-T", service, "env") for service in ("web", "db", "redis")]
    seen += [production("top"), production("config"), production("logs", "--no-color")]

    assert secrets(production).keys() == {"SECRET_KEY", "DATABASE_URL", "POSTGRES_PASSWORD"}
    assert [name for name, value in secrets(production).items() if any(value in text for text in seen)] == []
    # They are there, though: the checks above looked at what runs with them.
    assert production("exec", "-T", "web", "cat", "/run/secrets/SECRET_KEY") == secrets(production)["SECRET_KEY"]


@pytest.mark.parametrize("service", ["web", "migrate", "db", "redis"])
def test_each_container_has_limits_and_no_rights(production: Compose, service: str) -> None:
    container = production.container(service)
    config = json.loads(container.inspect("{{json .HostConfig}}"))

    assert config["CapDrop"] == ["ALL"]
    assert config["CapAdd"] is None
    assert config["SecurityOpt"] == ["no-new-privileges:true"]
    assert config["Privileged"] is False
    assert config["Memory"] > 0
    assert 0 < config["PidsLimit"] <= 256
    assert container.inspect("{{.Config.User}}") not in {"", "root", "0"}
    # The database's image is not ours, and writes beside its data.
    assert config["ReadonlyRootfs"] is (service != "db")
    mounts = json.loads(container.inspect("{{json .Mounts}}"))
    assert {mount["Destination"].rpartition("/")[0] for mount in mounts if mount["Type"] == "bind"} <= {"/run/secrets"}
    assert config["RestartPolicy"]["Name"] == ("no" if service == "migrate" else "unless-stopped")


def test_what_the_proxy_on_this_host_says_about_its_client_is_believed(production: Compose) -> None:
    httpx.get(f"{production.url}/users/me", headers={"X-Forwarded-For": "203.0.113.9"}, timeout=PATIENCE)

    lines = json_lines(production.container("web").log)
    assert [line["client"] for line in lines if line["event"] == "request"][-1] == "203.0.113.9"


def test_it_comes_back_by_itself(production: Compose) -> None:
    web = production.container("web")
    started_at = web.inspect("{{.State.StartedAt}}")

    web.execute("python", "-c", "import os, signal; os.kill(1, signal.SIGINT)")

    until(lambda: web.inspect("{{.State.StartedAt}}") > started_at, "it has started again")
    web.is_healthy()


def test_down_ends_all_in_order_and_up_finds_what_was_there(production: Compose) -> None:
    production("stop")
    codes = {name: production.container(name).inspect("{{.State.ExitCode}}") for name in ("web", "db", "redis")}
    production("down")

    run(production, UP)

    assert codes == {"web": "0", "db": "0", "redis": "0"}
    assert log_in(production).status_code == 200


def test_a_backup_brings_back_what_was_lost(production: Compose) -> None:
    run(production, BACKUP)
    query(production, "DELETE FROM users")
    lost = log_in(production)
    assert oct(production.file.with_name("backup").stat().st_mode).endswith("600")

    run(production, RESTORE)

    assert lost.status_code == 401
    assert log_in(production).status_code == 200


def test_new_secrets_are_read(production: Compose) -> None:
    auth = {"Authorization": f"Bearer {log_in(production).json()['access_token']}"}
    query(production, "ALTER ROLE app PASSWORD 'new'")
    folder = production.file.with_name("secrets")
    folder.joinpath("SECRET_KEY").write_text("another key, of 32 bytes or more")
    folder.joinpath("POSTGRES_PASSWORD").write_text("new")
    folder.joinpath("DATABASE_URL").write_text("postgresql://app:new@db/app")

    run(production, RECREATE)

    assert httpx.get(f"{production.url}/users/me", headers=auth, timeout=PATIENCE).status_code == 401
    assert log_in(production).status_code == 200


def test_the_release_before_starts_on_the_schema_of_a_later_one(production: Compose, image: str) -> None:
    before = f"{image}-before"
    cli("tag", image, before)
    query(production, "UPDATE alembic_version SET version_num = '9999'")
    try:
        run(production, UP, IMAGE=before)

        assert "not known here, as a later release's is not" in production.container("migrate").log
        assert production.container("web").inspect("{{.Config.Image}}") == before
        assert log_in(production).status_code == 200
    finally:
        cli("rmi", "--force", before)


def test_a_migration_that_fails_keeps_the_web_from_starting(project: Callable[[], Compose]) -> None:
    compose = project()
    compose("up", "--detach", "--wait", "db")
    query(compose, SPOIL)

    with pytest.raises(AssertionError, match='service "migrate" didn\'t complete successfully: exit 1'):
        run(compose, UP)

    assert compose.container("web").inspect("{{.State.Status}}") == "created"


def test_the_grace_period_has_room_for_gunicorns_own(production: Compose) -> None:
    config = json.loads(production("config", "--format", "json"))

    assert config["services"]["web"]["stop_grace_period"] == "40s"
    assert "graceful_timeout = 30\n" in (ROOT / "gunicorn.conf.py").read_text()


def test_without_variables_it_is_the_readmes_image_on_the_usual_port(production: Compose) -> None:
    text = production.file.read_text()

    assert f"image: ${{IMAGE:-{NAME}}}" in text
    assert "127.0.0.1:${WEB_PORT:-8000}:8000" in text
