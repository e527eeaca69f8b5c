"""No mail is lost when the mail server is away and the service is killed."""

import asyncio
import re
from collections import defaultdict
from collections.abc import Iterator

import httpx
import pytest
from processes import PATIENCE, free_port, get_or_none, until

from tests.container.conftest import POSTGRESQL, POSTGRESQL_OPTIONS, Database
from tests.container.engine import Container, run_container, run_docker
from tests.container.service import run_service, wait_for_workers

pytestmark = pytest.mark.soak  # a mail that a killed worker was sending is sent again after five minutes

MAILDEV = "maildev/maildev:2.2.1"
ACCOUNTS = 1000
CLIENTS = 16
# Seconds for all mails to arrive. One that was being sent by a killed worker is sent after its lease, five minutes.
DELIVERY_SECONDS = 900
CREATE_ACCOUNTS = f"""
INSERT INTO users (email, full_name, password_hash, is_active, is_superuser, security_stamp, created_at, updated_at)
SELECT 'user' || number || '@example.com', 'User', '', true, false, gen_random_uuid(), now(), now()
FROM generate_series(1, {ACCOUNTS}) AS number
"""


@pytest.fixture
def database(network: str) -> Iterator[Database]:
    with run_container(POSTGRESQL, f"--network={network}", *POSTGRESQL_OPTIONS) as container:
        yield Database(container.wait_until_healthy())


@pytest.fixture
def maildev(network: str) -> Iterator[Container]:
    with run_container(MAILDEV, f"--network={network}") as container:
        yield container


@pytest.fixture
def service(image: str, network: str, database: Database, maildev: Container) -> Iterator[Container]:
    with run_service(
        image,
        f"--network={network}",
        f"--publish=127.0.0.1:{free_port()}:8000",  # the same after a restart, unlike the container's own address
        DATABASE_URL=database.url_by_name,
        DATABASE_MIGRATE="true",
        SMTP_URL=f"smtp://{maildev.name}:1025",
        MAIL_FROM="no-reply@example.org",
        ARGON2_MEMORY_KIB="64",
        ARGON2_TIME_COST="1",
        MAX_REQUESTS="0",
    ) as container:
        yield container


async def run_clients(url: str, path: str, bodies: list[dict[str, str]]) -> list[int]:
    """Send a request for each body, some at a time, and return the statuses. Repeat those without a response."""
    queue = iter(enumerate(bodies))
    statuses = [0] * len(bodies)

    async def run_client(http: httpx.AsyncClient) -> None:
        for number, body in queue:
            while statuses[number] in {0, 503}:
                try:
                    statuses[number] = (await http.post(url + path, json=body)).status_code
                except httpx.TransportError:
                    await asyncio.sleep(0.1)

    async with httpx.AsyncClient(timeout=PATIENCE) as http:
        await asyncio.gather(*(run_client(http) for _ in range(CLIENTS)))
    return statuses


def links_by_account(maildev: Container) -> dict[str, set[str]]:
    """Return the tokens that have arrived for each address."""
    links = defaultdict(set)
    for mail in httpx.get(f"http://{maildev.ip}:1080/email", timeout=PATIENCE).json():
        (token,) = re.findall(r"#token=(\S+)", mail["text"])
        links[mail["to"][0]["address"]].add(token)
    return links


async def test_mails_arrive_after_an_outage_of_the_mail_server_in_which_the_service_is_killed(
    service: Container, database: Database, maildev: Container
) -> None:
    database.query(CREATE_ACCOUNTS)
    run_docker("kill", maildev.name)
    url = service.url
    bodies = [{"email": f"user{number}@example.com"} for number in range(1, ACCOUNTS + 1)]
    half = ACCOUNTS // 2

    for starts, part in enumerate((bodies[:half], bodies[half:]), start=2):
        requests = asyncio.create_task(run_clients(url, "/auth/password-reset", part))
        await asyncio.sleep(1)  # so that it is killed while it accepts requests
        await asyncio.to_thread(service.send_signal, "KILL")
        await asyncio.to_thread(service.wait_for_exit)
        await asyncio.to_thread(service.start)
        await asyncio.to_thread(wait_for_workers, service, 2 * starts)
        assert set(await requests) == {202}

    stored = int(database.query("SELECT count(DISTINCT recipient) FROM mails"))
    maildev.start()
    until(lambda: get_or_none(f"http://{maildev.ip}:1080/healthz"), "maildev responds")
    async with asyncio.timeout(DELIVERY_SECONDS):
        while int(await asyncio.to_thread(database.query, "SELECT count(*) FROM mails")):  # noqa: ASYNC110  there is no event
            await asyncio.sleep(1)
    links = links_by_account(maildev)

    assert stored == ACCOUNTS
    assert links.keys() == {body["email"] for body in bodies}
    tokens = [token for of_account in links.values() for token in of_account]
    assert len(set(tokens)) == len(tokens)
    confirmations = [{"token": token, "new_password": "a new password"} for token in tokens]
    first = await run_clients(url, "/auth/password-reset/confirm", confirmations)
    second = await run_clients(url, "/auth/password-reset/confirm", confirmations)
    # A request whose response was lost has been repeated, and only the newest link of an account is valid.
    assert first.count(204) == ACCOUNTS
    assert first.count(400) == len(tokens) - ACCOUNTS
    assert set(second) == {400}
    assert not [line for line in service.log_lines if line["level"] == "error"]
