"""Tests of docker-compose.production.yml: published ports, secrets, limits, startup, shutdown, release and rollback."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
from processes import TIMEOUT, free_port, get_or_none, until

from app import NAME, PREFIX
from tests.conftest import NO_LIMIT, RATE_LIMITS, ROOT
from tests.container.engine import Compose, run_container, run_docker
from tests.container.load import Target, assert_no_request_lost, continue_load, load
from tests.container.production import log_in, production_project, query, run
from tests.container.service import CONFLICTING_TABLE, PERSON
from tests.container.service import log_in as get_auth
from tests.pages import blocks, command

# The example image name in the documentation.
RELEASE = "fastapi-app:1.2.3"


@pytest.fixture(scope="module")
def create_project(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[Callable[[], Compose]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(production_project(tmp_path_factory.mktemp("host"), image))


@pytest.fixture(scope="module")
def production(create_project: Callable[[], Compose]) -> Compose:
    """The running project, with one registered user."""
    compose = create_project()
    run(compose, command("up"))
    httpx.post(f"{compose.url}/users/", json=PERSON, timeout=TIMEOUT).raise_for_status()
    return compose


def read_secrets(compose: Compose) -> dict[str, str]:
    return {file.name: file.read_text().strip() for file in compose.file.with_name("secrets").iterdir()}


def test_database_is_migrated_before_the_service_starts(production: Compose) -> None:
    migration, web = (json.loads(production.container(name).inspect("{{json .State}}")) for name in ("migrate", "web"))
    ready = httpx.get(f"{production.url}/health/ready", timeout=TIMEOUT)
    me = httpx.get(f"{production.url}/users/me", headers=get_auth(production.url), timeout=TIMEOUT)

    assert (migration["Status"], migration["ExitCode"]) == ("exited", 0)
    assert migration["FinishedAt"] < web["StartedAt"]
    assert ready.json() == {"status": "ready", "database": "connected", "redis": "connected"}
    assert me.json()["email"] == PERSON["email"]


def test_number_of_workers_follows_from_the_cpu_limit(production: Compose) -> None:
    web = production.container("web")

    message = [message for message in web.messages("info") if "workers" in message][-1]  # logged at the last start
    assert message.startswith("3 workers (2 x 1 CPUs + 1, by the cgroup's CPU quota), at most ")
    assert message.endswith(" of 1024 MiB of memory, and 24 database connections")
    assert web.log_levels == {"info"}


def test_service_can_change_rows_but_no_tables(production: Compose) -> None:
    psql = f"docker compose exec -T db psql '{read_secrets(production)['DATABASE_URL']}' --command"

    assert "1 row" in run(production, f"{psql} 'SELECT count(*) FROM users'")
    for statement in ("DROP TABLE users", "ALTER TABLE users ADD x int", "DELETE FROM alembic_version"):
        with pytest.raises(AssertionError, match=r"permission denied|must be owner"):
            run(production, f"{psql} '{statement}'")


def test_only_the_service_is_published_and_only_to_this_host(production: Compose) -> None:
    published = {
        service: json.loads(production.container(service).inspect("{{json .NetworkSettings.Ports}}"))
        for service in ("web", "db", "redis")
    }

    (binding,) = published["web"].pop("8000/tcp")
    assert binding["HostIp"] == "127.0.0.1"
    assert not any(bindings for ports in published.values() for bindings in ports.values())


def test_database_and_redis_have_no_connection_to_the_outside(production: Compose) -> None:
    networks = {
        service: json.loads(production.container(service).inspect("{{json .NetworkSettings.Networks}}"))
        for service in ("web", "db", "redis")
    }

    assert networks["db"].keys() == networks["redis"].keys() == {f"{production.name}_inside"}
    assert run_docker("network", "inspect", "--format", "{{.Internal}}", f"{production.name}_inside") == "true"
    assert networks["web"].keys() == {f"{production.name}_inside", f"{production.name}_outside"}


def test_fixed_address_is_given_to_no_other_container(production: Compose) -> None:
    """If another container took `web`'s address while `web` was restarting, Docker could not start `web` again."""
    network = f"{production.name}_outside"
    attached = json.loads(production.container("web").inspect("{{json .NetworkSettings.Networks}}"))
    (ipam,) = json.loads(run_docker("network", "inspect", "--format", "{{json .IPAM.Config}}", network))

    assert attached[network]["IPAddress"] == f"{production.variables['WEB_NETWORK']}.2"
    assert ipam["Gateway"] == f"{production.variables['WEB_NETWORK']}.1"
    assert ip_address(attached[network]["IPAddress"]) not in ip_network(ipam["IPRange"])


def test_docker_commands_show_no_secret(production: Compose) -> None:
    services = ("web", "migrate", "db", "redis")
    outputs = [run_docker("inspect", production.container(service).name) for service in services]
    outputs += [production("exec", "-T", service, "env") for service in ("web", "db", "redis")]
    outputs += [production("top"), production("config"), production("logs", "--no-color")]

    secrets = read_secrets(production)
    assert secrets.pop("SECRET_KEY_PREVIOUS") == ""
    assert secrets.keys() == {"SECRET_KEY", "DATABASE_URL", "DATABASE_OWNER_URL", "POSTGRES_PASSWORD"}
    assert [name for name, value in secrets.items() if any(value in output for output in outputs)] == []
    # The containers do have the secrets, so the commands above could have printed them.
    assert production("exec", "-T", "web", "cat", "/run/secrets/SECRET_KEY") == secrets["SECRET_KEY"]


@pytest.mark.parametrize("service", ["web", "migrate", "db", "redis"])
def test_each_container_has_resource_limits_and_no_capabilities(production: Compose, service: str) -> None:
    container = production.container(service)
    config = json.loads(container.inspect("{{json .HostConfig}}"))

    assert config["CapDrop"] == ["ALL"]
    assert config["CapAdd"] is None
    assert config["SecurityOpt"] == ["no-new-privileges:true"]
    assert config["Privileged"] is False
    assert config["Memory"] > 0
    assert 0 < config["PidsLimit"] <= 1024
    assert container.inspect("{{.Config.User}}") not in {"", "root", "0"}
    # The root file system of `db` is writable, because PostgreSQL also writes outside its data directory.
    assert config["ReadonlyRootfs"] is (service != "db")
    mounts = json.loads(container.inspect("{{json .Mounts}}"))
    assert {mount["Destination"].rpartition("/")[0] for mount in mounts if mount["Type"] == "bind"} <= {"/run/secrets"}
    assert config["RestartPolicy"]["Name"] == ("no" if service == "migrate" else "unless-stopped")


def get_logged_client(compose: Compose, url: str, forwarded_for: str) -> str:
    """Send a request that is rejected with 401, and return the client's address from the access log."""
    user_agent = uuid4().hex
    headers = {"X-Forwarded-For": forwarded_for, "User-Agent": user_agent}
    assert httpx.get(f"{url}/users/me", headers=headers, timeout=TIMEOUT).status_code == 401
    web = compose.container("web")
    web.wait_for_log(user_agent)
    return next(str(line["client"]) for line in web.log_lines if line.get("user_agent") == user_agent)


def test_forwarded_address_from_the_proxy_on_this_host_is_trusted(production: Compose) -> None:
    assert get_logged_client(production, production.url, "203.0.113.9") == "203.0.113.9"


@contextmanager
def run_proxy(folder: Path, compose: Compose) -> Iterator[str]:
    """Run the proxy as documented, but without HTTPS and with a longer time for retries, and yield its URL."""
    (caddyfile,) = [block for block in blocks() if block.title == "Caddyfile"]
    url = f"http://localhost:{free_port()}"
    text = caddyfile.text.replace("api.example.com", url)
    text = text.replace("10.254.254", compose.variables["WEB_NETWORK"]).replace("60s", f"{TIMEOUT}s")
    (folder / "Caddyfile").write_text("{\n    admin off\n}\n" + text)
    with run_container("caddy:2.11-alpine", "--network=host", f"--volume={folder}:/etc/caddy:ro"):
        until(lambda: get_or_none(url), "the proxy responds")
        yield url


def test_documented_proxy_passes_on_the_host_and_the_address_of_its_client(
    production: Compose, readable_path: Path
) -> None:
    with run_proxy(readable_path, production) as url:
        assert get_logged_client(production, url + PREFIX, "203.0.113.9") in {"127.0.0.1", "::1"}


def test_exited_service_is_restarted(production: Compose) -> None:
    web = production.container("web")
    started_at = web.inspect("{{.State.StartedAt}}")

    web.execute("python", "-c", "import os, signal; os.kill(1, signal.SIGINT)")

    until(lambda: web.inspect("{{.State.StartedAt}}") > started_at, "it is restarted")
    web.wait_until_healthy()


def test_down_exits_cleanly_and_up_keeps_the_data(production: Compose) -> None:
    production("stop")
    exit_codes = {name: production.container(name).exit_code for name in ("web", "db", "redis")}
    production("down")

    run(production, command("up"))

    assert exit_codes == {"web": 0, "db": 0, "redis": 0}
    assert log_in(production).status_code == 200


def test_previous_release_starts_on_the_schema_of_a_later_one(production: Compose, image: str) -> None:
    previous = f"{image}-previous"
    run_docker("tag", image, previous)
    query(production, "UPDATE alembic_version SET version_num = '9999'")
    try:
        output = run(production, command("release").replace(RELEASE, previous))

        assert "unknown revision, probably of a later release: the schema is not changed" in output
        assert production.container("web").inspect("{{.Config.Image}}") == previous
        assert log_in(production).status_code == 200
    finally:
        run_docker("rmi", "--force", previous)


def test_release_with_an_empty_secret_leaves_the_old_version_running(production: Compose, image: str) -> None:
    started_at = production.container("web").inspect("{{.State.StartedAt}}")
    secret_key = production.file.with_name("secrets") / "SECRET_KEY"
    before = secret_key.read_text()
    secret_key.write_text("")
    try:
        with pytest.raises(AssertionError, match=r"The settings are not valid:\\n  SECRET_KEY: must be set"):
            run(production, command("release").replace(RELEASE, image))
    finally:
        secret_key.write_text(before)

    assert production.container("web").inspect("{{.State.StartedAt}}") == started_at
    assert log_in(production).status_code == 200


def test_release_behind_the_documented_proxy_loses_no_request(
    tmp_path_factory: pytest.TempPathFactory, readable_path: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While `web` is being replaced, the proxy holds new requests until they can be served."""
    monkeypatch.setattr("tests.container.load.RESPONSE_TIMEOUT", TIMEOUT)
    later = f"{image}-later"
    run_docker("tag", image, later)
    with ExitStack() as stack:
        stack.callback(run_docker, "rmi", "--force", later)
        compose = stack.enter_context(production_project(tmp_path_factory.mktemp("host"), image))
        with compose.file.with_name(".env.production").open("a") as settings:
            settings.writelines(f"{name.upper()}={NO_LIMIT}\n" for name in RATE_LIMITS)
        run(compose, command("up"))
        httpx.post(f"{compose.url}/users/", json=PERSON, timeout=TIMEOUT).raise_for_status()
        headers = get_auth(compose.url)
        url = urlsplit(stack.enter_context(run_proxy(readable_path, compose)))
        read = Target("localhost", url.port or 80, f"{PREFIX}/users/me", headers)
        write = read._replace(method="PATCH", json='{"full_name": "A"}')
        with load(read, write) as report:
            for image_name in (later, image):
                continue_load(report)
                run(compose, command("release").replace(RELEASE, image_name))
            continue_load(report)
    print(f"-- {report.responses} responses, the slowest after {report.slowest:.1f} s")  # noqa: T201  shown by `pytest -rP`

    assert_no_request_lost(report)


def test_failed_migration_during_a_release_leaves_the_old_version_running(production: Compose, image: str) -> None:
    started_at = production.container("web").inspect("{{.State.StartedAt}}")
    query(production, "UPDATE alembic_version SET version_num = '0001'")  # makes the next migration fail

    with pytest.raises(AssertionError, match="Nothing was changed"):
        run(production, command("release").replace(RELEASE, image))

    assert production.container("web").inspect("{{.State.StartedAt}}") == started_at
    assert log_in(production).status_code == 200


def test_failed_migration_keeps_the_service_from_starting(create_project: Callable[[], Compose]) -> None:
    compose = create_project()
    compose("up", "--detach", "--wait", "db")
    query(compose, CONFLICTING_TABLE)

    with pytest.raises(AssertionError, match='service "migrate" didn\'t complete successfully: exit 1'):
        run(compose, command("up"))

    assert compose.container("web").inspect("{{.State.Status}}") == "created"


def test_stop_grace_period_is_longer_than_graceful_timeout(production: Compose) -> None:
    config = json.loads(production("config", "--format", "json"))

    assert config["services"]["web"]["stop_grace_period"] == "40s"
    assert "graceful_timeout = 30\n" in (ROOT / "gunicorn.conf.py").read_text()


def test_default_image_and_port_are_the_documented_ones(production: Compose) -> None:
    text = production.file.read_text()

    assert f"image: ${{IMAGE:-{NAME}}}" in text
    assert "127.0.0.1:${WEB_PORT:-8000}:8000" in text
