"""With a real mail server, no email is lost, and none is sent over an unencrypted connection."""

import asyncio
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme
from processes import TIMEOUT, free_port, get_or_none, until

from tests.container.conftest import MAILDEV, POSTGRESQL, POSTGRESQL_OPTIONS, Database
from tests.container.engine import Container, run_container, run_docker
from tests.container.service import PERSON, run_service, wait_for_workers

CLIENTS = 16
# Maximum time in seconds until all emails have arrived. If a worker is killed while sending an email, the email is not
# retried until its lease expires, which takes up to five minutes.
DELIVERY_SECONDS = 900
CREATE_ACCOUNTS = """
INSERT INTO users (email, full_name, password_hash, is_active, is_superuser, security_stamp, created_at, updated_at)
SELECT 'user' || number || '@example.com', 'User', 'no hash', true, false, gen_random_uuid(), now(), now()
FROM generate_series(1, {}) AS number
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
        f"--publish=127.0.0.1:{free_port()}:8000",  # a fixed port, because the IP address may change at a restart
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
    """Send a request for each body, and return the statuses. Retry requests that get no response or a 503."""
    queue = iter(enumerate(bodies))
    statuses = [0] * len(bodies)

    async def run_client(http: httpx.AsyncClient) -> None:
        for number, body in queue:
            while statuses[number] in {0, 503}:
                try:
                    statuses[number] = (await http.post(url + path, json=body)).status_code
                except httpx.TransportError:
                    await asyncio.sleep(0.1)

    async with httpx.AsyncClient(timeout=TIMEOUT) as http:
        await asyncio.gather(*(run_client(http) for _ in range(CLIENTS)))
    return statuses


def links_by_account(maildev: Container) -> dict[str, set[str]]:
    """Map each email address to the tokens in the emails sent to it."""
    links = defaultdict(set)
    for mail in httpx.get(f"http://{maildev.ip}:1080/email", timeout=TIMEOUT).json():
        (token,) = re.findall(r"#token=(\S+)", mail["text"])
        links[mail["to"][0]["address"]].add(token)
    return links


async def stored(database: Database, column: str) -> int:
    """Return the value of an aggregate expression, for example `count(*)`, over the emails in the outbox."""
    return int(await asyncio.to_thread(database.query, f"SELECT {column} FROM mails"))


@pytest.mark.parametrize(("accounts", "kills"), [(50, 1), pytest.param(1000, 2, marks=pytest.mark.soak)])
async def test_kills_during_a_mail_server_outage_lose_no_mail(
    service: Container, database: Database, maildev: Container, accounts: int, kills: int
) -> None:
    database.query(CREATE_ACCOUNTS.format(accounts))
    run_docker("kill", maildev.name)
    url = service.url
    bodies = [{"email": f"user{number}@example.com"} for number in range(1, accounts + 1)]
    part = accounts // kills

    for kill in range(kills):
        requests = asyncio.create_task(
            run_clients(url, "/auth/password-reset", bodies[kill * part : (kill + 1) * part])
        )
        async with asyncio.timeout(TIMEOUT):
            while await stored(database, "count(*)") <= kill * part:  # the service is killed while it accepts requests
                pass
        await asyncio.to_thread(service.send_signal, "KILL")
        await asyncio.to_thread(service.wait_for_exit)
        await asyncio.to_thread(service.start)
        await asyncio.to_thread(wait_for_workers, service, 2 * (kill + 2))
        assert set(await requests) == {202}

    recipients = await stored(database, "count(DISTINCT recipient)")
    if kills == 1:  # do not wait until the leases of emails that were being sent expire
        database.query("UPDATE mails SET next_attempt_at = now()")
    maildev.start()
    until(lambda: get_or_none(f"http://{maildev.ip}:1080/healthz"), "maildev responds")
    async with asyncio.timeout(DELIVERY_SECONDS):
        while await stored(database, "count(*)"):  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(1)
    links = links_by_account(maildev)

    assert recipients == accounts
    assert links.keys() == {body["email"] for body in bodies}
    tokens = [token for of_account in links.values() for token in of_account]
    assert len(set(tokens)) == len(tokens)
    confirmations = [{"token": token, "new_password": "a new password"} for token in tokens]
    first = await run_clients(url, "/auth/password-reset/confirm", confirmations)
    second = await run_clients(url, "/auth/password-reset/confirm", confirmations)
    # Requests that got no response were retried, so an account may have been sent several links. Only the newest link
    # is valid.
    assert first.count(204) == accounts
    assert first.count(400) == len(tokens) - accounts
    assert set(second) == {400}
    assert not [line for line in service.log_lines if line["level"] == "error"]


@pytest.fixture
def certificates(readable_path: Path) -> Path:
    """A directory that contains a mail server's certificate, its private key, and the certificate of the issuing CA."""
    authority = trustme.CA()
    certificate = authority.issue_cert("mail.test")
    authority.cert_pem.write_to_path(readable_path / "authority.pem")
    certificate.private_key_pem.write_to_path(readable_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(readable_path / "cert.pem")
    return readable_path


@pytest.mark.parametrize("scheme", ["smtps", "smtp+starttls"])
def test_mail_is_sent_only_over_tls(image: str, network: str, certificates: Path, scheme: str) -> None:
    """Maildev does not offer STARTTLS, as if an attacker on the network had removed the offer of another server."""
    docker_options = f"--network={network}", f"--volume={certificates}:/tls:ro"
    tls = ["--incoming-secure", "--incoming-cert=/tls/cert.pem", "--incoming-key=/tls/key.pem"]
    command = [*(tls if scheme == "smtps" else []), "--incoming-user=ann", "--incoming-pass=p/w"]
    settings = {
        "SMTP_URL": f"{scheme}://ann:p%2Fw@mail.test:1025",
        "MAIL_FROM": "no-reply@example.org",
        "SSL_CERT_FILE": "/tls/authority.pem",
    }
    with run_container(MAILDEV, *docker_options, "--network-alias=mail.test", command=command) as maildev:
        until(lambda: get_or_none(f"http://{maildev.ip}:1080/healthz"), "maildev responds")
        with run_service(image, *docker_options, WEB_CONCURRENCY="1", **settings) as service:
            url = f"http://{service.ip}:8000"

            httpx.post(f"{url}/users/", json=PERSON, timeout=TIMEOUT).raise_for_status()

            service.wait_for_log("mail sent" if scheme == "smtps" else "the mail server is unavailable: mails wait")
            ready = httpx.get(f"{url}/health/ready", timeout=TIMEOUT).json()
            reasons = [line["reason"] for line in service.log_lines if line["level"] == "warning"]
            mails = httpx.get(f"http://{maildev.ip}:1080/email", timeout=TIMEOUT).json()

    if scheme == "smtps":
        assert (reasons, ready["mail"]) == ([], "available")
        assert [mail["to"][0]["address"] for mail in mails] == [PERSON["email"]]
    else:
        assert (mails, ready["mail"]) == ([], "unavailable")
        assert "STARTTLS" in reasons[0]
