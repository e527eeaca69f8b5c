"""A feature that uses most of FastAPI is added to a copy of the repository, and the copy passes all checks.

The feature's new files are in `projects/`. The lines that it adds to existing files are in this module.
"""

import asyncio
import difflib
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import pytest
from processes import TIMEOUT, until
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from app import NAME
from tests.conftest import NO_LIMIT
from tests.container.conftest import POSTGRESQL, POSTGRESQL_OPTIONS, Database
from tests.container.engine import run_container, run_docker
from tests.container.service import run_service
from tests.copies.repository import contents, copy_repository, run
from tests.people import PASSWORD

FEATURE = Path(__file__).with_name("projects")
GENERATED = {"tests/openapi.json"}
# The tests that check every feature.
TESTS = ["test_access.py", "test_architecture.py", "test_documentation.py", "test_migrations.py", "test_openapi.py"]


class Addition(NamedTuple):
    """Lines to insert into a file, below the only line that begins with the text in `after`."""

    file: str
    after: str
    lines: str


ADDITIONS = [
    Addition("app/api.py", "from app.health.router", "from app.projects.reports import reports"),
    Addition("app/api.py", "from app.projects.reports", "from app.projects.router import router as projects"),
    Addition("app/api.py", "    auth,", "    projects,"),
    Addition(
        "app/api.py", '    {"name": "users"', '    {"name": "projects", "description": "Projects and their members"},'
    ),
    Addition("app/api.py", "    app.include_router(health", '    app.mount(f"{PREFIX}/reports", reports)'),
    # A role between users and superusers
    Addition("app/users/models.py", "    is_superuser: bool", "    is_staff: bool"),
    Addition(
        "app/users/models.py",
        "    is_superuser: Mapped",
        '    is_staff: Mapped[bool] = mapped_column(default=False, server_default="0")',
    ),
    Addition("app/users/schemas.py", "    is_superuser: bool | MISSING", "    is_staff: bool | MISSING = MISSING"),
    # A rate limit
    Addition(
        "app/settings.py",
        "    rate_limit_mail:",
        '    rate_limit_invite: Rate = Field("30/minute", description="Invitations allowed per client IP address")',
    ),
    Addition(
        ".env.example",
        "# RATE_LIMIT_MAIL",
        "\n# Invitations allowed per client IP address\n# RATE_LIMIT_INVITE=30/minute",
    ),
    # Additions to the tests
    Addition("tests/test_access.py", "    SUPERUSER = ", '    STAFF = "a member of staff", {"is_staff": True}'),
    Addition("tests/test_access.py", "SUPERUSERS = ", "READERS = frozenset({Role.SELF, Role.STAFF, Role.SUPERUSER})"),
    Addition("tests/test_access.py", "READERS = ", "STAFF = frozenset({Role.STAFF, Role.SUPERUSER})"),
    Addition("tests/test_access.py", "STAFF = ", "OWNER = frozenset({Role.SELF})"),
    Addition(
        "tests/test_access.py",
        "OWNER = ",
        """\
PROJECT = {
    "key": str(UUID(int=1)),
    "name": "Moon landing",
    "status": "planned",
    "starts_on": "2027-01-31",
    "budget": "1500.50",
    "tags": ["space"],
}""",
    ),
    Addition(
        "tests/test_access.py",
        '    promotion = {"full_name"',
        """\
    another = PROJECT | {"key": str(UUID(int=2))}
    invitation = {"user_id": user.id + 1, "role": "member"}""",
    ),
    Addition(
        "tests/test_access.py",
        '        Route("DELETE /users/{user_id}"',
        """\
        Route("POST /projects/", USERS, body=another, status=201),
        Route("GET /projects/", USERS),
        Route("GET /projects/{project_id}", READERS, path={"project_id": 1}),
        Route("GET /projects/{project_id}/events", READERS, path={"project_id": 1}),
        Route("WEBSOCKET /projects/{project_id}/chat", READERS, path={"project_id": 1}, status=101),
        Route("POST /projects/{project_id}/members", OWNER, path={"project_id": 1}, body=invitation, status=201),
        Route("PUT /projects/{project_id}/document", OWNER, path={"project_id": 1}, body={}),
        Route("GET /reports/projects", STAFF),""",
    ),
    Addition(
        "tests/test_access.py",
        "    of_role = {",
        '    await client.post("/projects/", json=PROJECT, headers=of_role[Role.SELF].auth)',
    ),
]


def insert(file: Path, after: str, added: str) -> None:
    """Insert lines below the line that begins with `after`. There must be exactly one such line."""
    lines = file.read_text().splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if line.startswith(after)]
    lines[number:number] = added.splitlines()
    file.write_text("\n".join(lines) + "\n")


def add_feature(copy: Path) -> None:
    """Add the feature's new files, insert its lines into existing files, and change PREFIX to `/v1`.

    Then generate the feature's migration and the OpenAPI document.
    """
    shutil.copytree(FEATURE, copy, dirs_exist_ok=True)
    for file, after, added in ADDITIONS:
        insert(copy / file, after, added)
    add_setting_to_documentation(copy)
    package = copy / "app/__init__.py"
    package.write_text(package.read_text().replace('PREFIX = ""', 'PREFIX = "/v1"'))
    run(copy, "uv run python -m app migrate")
    run(copy, 'uv run alembic revision --autogenerate -m "Projects"')
    run(copy, "uv run python -m app openapi > tests/openapi.json")


def add_setting_to_documentation(copy: Path) -> None:
    row = "| `RATE_LIMIT_MAIL` |"
    (page,) = [page for page in [*copy.glob("*.md"), *copy.glob("docs/*.md")] if row in page.read_text()]
    insert(page, row, "| `RATE_LIMIT_INVITE` | `30/minute` | Invitations allowed per client IP address |")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A copy of the repository with the feature, and the contents of all files before the feature was added."""
    copy = copy_repository(tmp_path_factory.mktemp("fork") / "with-projects")
    before = contents(copy)
    add_feature(copy)
    return copy, before


@pytest.fixture(scope="module")
def with_projects(copy: tuple[Path, dict[str, bytes]]) -> Path:
    return copy[0]


def test_feature_changes_one_line_and_only_adds_others(copy: tuple[Path, dict[str, bytes]]) -> None:
    after, before = contents(copy[0]), copy[1]

    assert before.keys() <= after.keys()
    added = changed = 0
    for path in before.keys() - GENERATED:
        if before[path] != after[path]:
            old, new = before[path].decode().splitlines(), after[path].decode().splitlines()
            marks = [line[:2] for line in difflib.ndiff(old, new)]
            added, changed = added + marks.count("+ "), changed + marks.count("- ")
    print(f"lines added to {len(ADDITIONS)} places of existing files: {added - changed}, changed: {changed}")  # noqa: T201  shown by `pytest -rP`

    assert changed == 1  # only the line that sets PREFIX


@pytest.mark.parametrize("check", ["ruff check .", "ruff format --check .", "mypy"])
def test_feature_passes_static_checks(with_projects: Path, check: str) -> None:
    run(with_projects, check)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_feature_passes_tests(with_projects: Path, database: str, request: pytest.FixtureRequest) -> None:
    """Run the feature's own tests, and the tests that apply to every feature."""
    paths = " ".join(f"tests/{name}" for name in ("projects", *TESTS))
    server = request.getfixturevalue("postgresql_server") if database == "postgresql" else ""
    selected = f"({database} or not (sqlite or postgresql)) and not generated"

    output = run(with_projects, f"pytest {paths} -k '{selected}'", database_url=server)

    assert " passed" in output


def test_default_tests_pass_with_the_feature(with_projects: Path) -> None:
    """Run the remaining default tests. New routes, tables and settings must not break them."""
    others = " ".join(f"--ignore=tests/{name}" for name in ("projects", *TESTS))

    output = run(with_projects, f"pytest -n 2 {others} -k 'not postgresql and not generated'")

    assert " passed" in output


@pytest.mark.parametrize("caller", ["user", "superuser"])
def test_feature_passes_generated_requests(with_projects: Path, caller: str) -> None:
    output = run(with_projects, f"pytest tests/server/test_schemathesis.py -k 'sqlite-{caller}'")

    assert "1 passed" in output


# In a container ------------------------------------------------------------------------------------------------------

CLIENTS = 5
SERVICE_RESTART = 1012  # the close code that a worker sends when it shuts down
RECYCLINGS = 10
SETTINGS = {
    "DATABASE_MIGRATE": "true",
    "WEB_CONCURRENCY": "5",
    "MAX_REQUESTS": "60",
    "MAX_REQUESTS_JITTER": "20",
    "RATE_LIMIT_INVITE": NO_LIMIT,
    "ARGON2_MEMORY_KIB": "64",
    "ARGON2_TIME_COST": "1",
}


@dataclass
class Acknowledged:
    """The operations that the service has acknowledged, and the errors that the clients have seen."""

    projects: set[str] = field(default_factory=set)
    invitations: int = 0
    documents: dict[int, str] = field(default_factory=dict)
    events: int = 0
    messages: int = 0
    restarts: int = 0  # WebSockets that were closed with code 1012
    failures: list[str] = field(default_factory=list)


class Client:
    """A client that creates and uses projects, and never retries a request."""

    def __init__(self, http: httpx.AsyncClient, number: int, acknowledged: Acknowledged) -> None:
        self.http = http
        self.acknowledged = acknowledged
        self.number = number
        self.auth: dict[str, str] = {}

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response | None:  # noqa: ANN401  httpx's options
        """Send a request. Return the response if it is successful. Otherwise, record the failure and return None."""
        try:
            response = await self.http.request(method, path, headers=self.auth, **options)
        except httpx.TransportError as error:
            self.acknowledged.failures.append(f"{method} {path}: {error!r}")
            return None
        if response.is_success:
            return response
        self.acknowledged.failures.append(f"{method} {path}: {response.status_code} {response.text}")
        return None

    async def sign_up(self) -> int:
        credentials = {"email": f"{self.number}@example.com", "password": PASSWORD}
        user = await self.send("POST", "/users/", json=credentials | {"full_name": "A"})
        login = await self.send("POST", "/auth/login", json=credentials)
        assert user, self.acknowledged
        assert login, self.acknowledged
        self.auth = {"Authorization": f"Bearer {login.json()['access_token']}"}
        return int(user.json()["id"])

    async def run(self, other_user: int, stop: threading.Event) -> None:
        """Create projects, and chat in the first one, until `stop` is set."""
        first = await self.use_project(other_user)
        assert first, self.acknowledged
        chat = asyncio.create_task(self.chat(first, stop))
        while not stop.is_set():
            await self.use_project(other_user)
        await chat

    async def use_project(self, other_user: int) -> int | None:
        """Create a project, add a member and a document, read its events and all projects, and return its id.

        Return None if the project was not created.
        """
        done, key = self.acknowledged, str(uuid4())
        project = {
            "key": key,
            "name": "A",
            "status": "active",
            "starts_on": "2027-01-31",
            "budget": "1.50",
            "tags": ["a"],
        }
        if not (created := await self.send("POST", "/projects/", json=project)):
            return None
        done.projects.add(key)
        number = int(created.json()["id"])
        invitation = {"user_id": other_user, "role": "member"}
        if await self.send("POST", f"/projects/{number}/members", json=invitation):
            done.invitations += 1
        document = bytes(20 * 2**20 if number % 10 == 0 else 2 * 2**20)
        if uploaded := await self.send("PUT", f"/projects/{number}/document", content=document):
            assert uploaded.json()["sha256"] == sha256(document).hexdigest()
            done.documents[number] = uploaded.json()["sha256"]
        page = await self.send("GET", "/projects/", params={"limit": 5, "status": "active", "min_budget": "1.5"})
        assert page is None or {"owner"} <= {member["role"] for member in page.json()["items"][0]["members"]}
        if events := await self.send("GET", f"/projects/{number}/events"):
            done.events += events.text.count("event: member")
        return number

    async def chat(self, project: int, stop: threading.Event) -> None:
        """Send messages until `stop` is set. If a worker closes the WebSocket with code 1012, open a new one."""
        done, url = self.acknowledged, f"{str(self.http.base_url).replace('http', 'ws', 1)}projects/{project}/chat"
        while not stop.is_set():
            try:
                async with connect(url, additional_headers=self.auth) as websocket:
                    while not stop.is_set():
                        await websocket.send("hello")
                        assert json.loads(await websocket.recv())["text"] == "hello"
                        done.messages += 1
                        await asyncio.sleep(0.05)
            except (OSError, WebSocketException) as error:
                if isinstance(error, ConnectionClosed) and error.rcvd and error.rcvd.code == SERVICE_RESTART:
                    done.restarts += 1
                else:
                    done.failures.append(f"chat: {error!r}")


async def run_clients(url: str, acknowledged: Acknowledged, stop: threading.Event) -> None:
    # Close idle connections early. By default, httpx keeps them for as long as the server does, so a request could be
    # sent on a connection that the server is about to close.
    limits = httpx.Limits(keepalive_expiry=2)
    async with httpx.AsyncClient(base_url=f"{url}/v1", timeout=TIMEOUT, limits=limits) as http:
        clients = [Client(http, number, acknowledged) for number in range(CLIENTS)]
        users = [await client.sign_up() for client in clients]
        others = users[1:] + users[:1]
        await asyncio.gather(*(client.run(other, stop) for client, other in zip(clients, others, strict=True)))


@pytest.mark.usefixtures("docker")
def test_feature_loses_nothing_while_workers_are_recycled(with_projects: Path) -> None:
    """The service runs in a container with five workers, and uses PostgreSQL."""
    image, done, stop = f"{NAME}-projects:{uuid4().hex}", Acknowledged(), threading.Event()
    run_docker("build", "--quiet", "--tag", image, with_projects)
    with ExitStack() as stack:
        stack.callback(run_docker, "rmi", "--force", image)
        server = stack.enter_context(run_container(POSTGRESQL, *POSTGRESQL_OPTIONS)).wait_until_healthy()
        database = Database(server)
        container = stack.enter_context(run_service(image, DATABASE_URL=database.url, **SETTINGS))
        with ThreadPoolExecutor(1) as executor:
            running = executor.submit(asyncio.run, run_clients(f"http://{container.ip}:8000", done, stop))
            try:
                container.wait_for_log("Maximum request limit", times=RECYCLINGS)
                until(lambda: done.restarts or done.failures, "a worker with a WebSocket leaves")
            finally:
                stop.set()
            running.result()
        container.stop(seconds=40)
        print(f"{len(done.projects)} projects, {done.messages} messages, {done.restarts} restarts")  # noqa: T201

        assert done.failures == []
        assert container.exit_code == 0
        assert set(database.query("SELECT key FROM projects").split()) == done.projects
        notified = database.query(
            "SELECT count(*) FROM project_members WHERE role = 'MEMBER' AND notified_at IS NOT NULL"
        )
        assert int(notified) == done.invitations
        stored = database.query("SELECT id || ':' || encode(document_sha256, 'hex') FROM projects").split()
        assert dict(line.split(":") for line in stored) == {
            str(number): hex_ for number, hex_ in done.documents.items()
        }
        assert done.events == 2 * len(done.projects)
