"""`docker compose up --build` starts the development environment: PostgreSQL, Redis, email, and reload on changes."""

import shutil
from collections.abc import Iterator

import httpx
import pytest
from processes import TIMEOUT, get_or_none, until

from app import PREFIX
from tests.conftest import ROOT
from tests.container.engine import Compose, compose_project
from tests.container.service import PERSON
from tests.pages import command

NEW_ROUTE = """
@app.get(PREFIX + "/news-in-a-test")
async def news() -> str:
    return "reloaded"
"""


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[Compose]:  # noqa: ARG001  its build fills the cache
    """The running Compose project. Its directory is a copy of the repository that tests may modify."""
    folder = tmp_path_factory.mktemp("compose") / "repository"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "data"))
    shutil.copy(ROOT / ".dockerignore", folder)
    ports = {"WEB_PORT": "0", "MAIL_PORT": "0", "DB_PORT": "0", "REDIS_PORT": "0"}
    with compose_project(folder / "docker-compose.yml", **ports) as project:
        project.run(command("compose-up").strip() + " --detach --wait")
        yield project


def stored_emails(compose: Compose) -> list[str]:
    """Return the email addresses of all users stored in PostgreSQL."""
    psql = ["psql", "--username=user", "--dbname=fastapi_db"]
    query = ["--tuples-only", "--no-align", "--command=SELECT email FROM users"]
    return compose("exec", "-T", "db", *psql, *query).splitlines()


def test_service_is_ready_with_postgresql_redis_and_mail(compose: Compose) -> None:
    ready = httpx.get(f"{compose.url}/health/ready", timeout=TIMEOUT)

    assert ready.json() == {"status": "ready", "database": "connected", "redis": "connected", "mail": "available"}


def test_mail_arrives_in_maildev(compose: Compose) -> None:
    httpx.post(f"{compose.url}/users/", json=PERSON | {"email": "mail@example.com"}, timeout=TIMEOUT)
    maildev = compose("port", "mail", "1080").strip()

    def find_mail() -> str | None:
        mails = httpx.get(f"http://{maildev}/email", timeout=TIMEOUT).json()
        return next((mail["text"] for mail in mails if mail["to"][0]["address"] == "mail@example.com"), None)

    text = until(find_mail, "maildev has received the mail")
    assert f"http://127.0.0.1:0{PREFIX}/account/email-verification#token=" in text  # WEB_PORT is 0 in this test


def test_users_are_stored_in_postgresql_and_kept_after_down_and_up(compose: Compose) -> None:
    registered = httpx.post(f"{compose.url}/users/", json=PERSON, timeout=TIMEOUT)
    assert registered.status_code == 201
    stored = stored_emails(compose)
    assert PERSON["email"] in stored

    compose("down")
    compose("up", "--detach", "--wait")

    assert stored_emails(compose) == stored


def test_changed_file_is_reloaded(compose: Compose) -> None:
    assert httpx.get(f"{compose.url}/news-in-a-test", timeout=TIMEOUT).status_code == 404

    with (compose.file.with_name("app") / "main.py").open("a") as main:
        main.write(NEW_ROUTE)

    until(
        lambda: (news := get_or_none(f"{compose.url}/news-in-a-test")) and news.text == '"reloaded"',
        "the new route is served",
    )


def test_ports_are_published_only_to_this_machine(compose: Compose) -> None:
    for service, port in ("web", "8000"), ("mail", "1080"), ("db", "5432"), ("redis", "6379"):
        assert compose("port", service, port).startswith("127.0.0.1:")


def test_default_ports_are_the_usual_ones() -> None:
    text = (ROOT / "docker-compose.yml").read_text()

    for port in (
        "${WEB_PORT:-8000}:8000",
        "${MAIL_PORT:-1080}:1080",
        "${DB_PORT:-5432}:5432",
        "${REDIS_PORT:-6379}:6379",
    ):
        assert port in text
