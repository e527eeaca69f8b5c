"""The API's documentation pages, tested in a browser that can connect only to the service."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, Page, Route, expect
from processes import TIMEOUT

from app import TITLE
from tests.browser.conftest import StartServer, Visit

expect.set_options(timeout=TIMEOUT * 1000)

NEW_PASSWORD = "Tr0ub4dor&3 is shorter"  # from the OpenAPI example for changing the password
SUPERUSER = {"email": "root@example.com", "password": "a good password"}


async def list_operations(url: str) -> list[tuple[str, str]]:
    """Return the tag and the id of every operation in the OpenAPI document."""
    async with httpx.AsyncClient() as client:
        document: dict[str, Any] = (await client.get(f"{url}/openapi.json")).json()
    return [
        (operation["tags"][0], operation["operationId"])
        for methods in document["paths"].values()
        for operation in methods.values()
    ]


async def test_swagger_ui_shows_every_operation(start_server: StartServer, visit: Visit) -> None:
    url = start_server()

    await visit.page.goto(f"{url}/docs")

    await expect(visit.page).to_have_title(f"{TITLE} - Swagger UI")
    for tag, name in await list_operations(url):
        await expect(visit.page.locator(f"#operations-{tag}-{name}")).to_be_visible()
    assert visit.console == []
    assert visit.external_requests(url) == []


async def test_redoc_shows_every_operation_and_its_search_finds_them(start_server: StartServer, visit: Visit) -> None:
    url = start_server()

    await visit.page.goto(f"{url}/redoc")

    await expect(visit.page).to_have_title(f"{TITLE} - ReDoc")
    for tag, name in await list_operations(url):
        await expect(visit.page.locator(f'[id="tag/{tag}/operation/{name}"]')).to_be_visible()
    await visit.page.get_by_placeholder("Search...").fill("password")
    result = visit.page.get_by_role("menuitem").filter(has_text="Change the current user's password")
    await expect(result.first).to_be_visible()
    assert visit.console == []
    assert visit.external_requests(url) == []


async def execute(page: Page, operation: str, **changes: str) -> tuple[int, Any]:
    """Execute an operation in Swagger UI with its example request, and return the status and body that the page shows.

    Args:
        page: The page.
        operation: The tag and the id of the operation, joined by a hyphen.
        changes: Fields of the request's body that differ from the example.
    """
    block = page.locator(f"#operations-{operation}")
    if not await block.locator(".opblock-body").is_visible():
        await block.locator(".opblock-summary-control").click()
        await block.get_by_role("button", name="Try it out").click()
    if changes:
        body = block.locator("textarea.body-param__text")
        await body.fill(json.dumps(json.loads(await body.input_value()) | changes))
    async with page.expect_response(lambda response: response.request.resource_type == "fetch") as received:
        await block.get_by_role("button", name="Execute").click()
    status = (await received.value).status
    shown = block.locator(".live-responses-table .response")
    await expect(shown.locator(".response-col_status")).to_contain_text(str(status))
    if status == 204:
        return status, None
    return status, json.loads(await shown.locator(".highlight-code code").first.inner_text())


async def authorize(page: Page, token: str) -> None:
    """Enter an access token in Swagger UI, replacing any earlier one. Swagger UI sends it with all later requests."""
    await page.locator(".scheme-container").get_by_role("button", name="Authorize").click()
    dialog = page.locator(".dialog-ux")
    if await dialog.get_by_role("button", name="Remove authorization").is_visible():
        await dialog.get_by_role("button", name="Remove authorization").click()
    await dialog.get_by_role("textbox").fill(token)
    await dialog.get_by_role("button", name="Apply credentials").click()
    await dialog.get_by_role("button", name="Close").first.click()


async def use_account(page: Page) -> None:
    """Register with the page's example request, log in, read and change the account, use its tokens, and delete it."""
    status, user = await execute(page, "users-create_user")
    assert (status, user["email"]) == (201, "user@example.com")
    taken = {"error": "Email already registered", "type": "validation_error"}
    assert await execute(page, "users-create_user") == (400, taken)

    status, tokens = await execute(page, "auth-login")
    assert status == 200
    await authorize(page, tokens["access_token"])

    assert await execute(page, "users-read_me") == (200, user)
    assert await execute(page, "users-read_user") == (200, user)
    assert (await execute(page, "users-update_me"))[1]["full_name"] == "Jane Doe"

    status, tokens = await execute(page, "auth-refresh", refresh_token=tokens["refresh_token"])
    assert status == 200
    await authorize(page, tokens["access_token"])

    assert await execute(page, "users-change_my_password") == (204, None)
    status, tokens = await execute(page, "auth-login", password=NEW_PASSWORD)
    assert status == 200
    await authorize(page, tokens["access_token"])

    assert await execute(page, "auth-logout") == (204, None)
    assert await execute(page, "users-delete_me") == (204, None)


async def list_users_as_superuser(page: Page) -> None:
    """Log in as a superuser, register the example user, and list all users."""
    _, tokens = await execute(page, "auth-login", **SUPERUSER)
    await authorize(page, tokens["access_token"])
    await execute(page, "users-create_user")

    status, users = await execute(page, "users-list_users")

    assert status == 200
    assert [user["email"] for user in users["items"]] == ["user@example.com", SUPERUSER["email"]]


@pytest.fixture
def create_superuser(tmp_path: Path, clean_environment: dict[str, str]) -> Callable[[], None]:
    """Return a function that creates a superuser in the server's database."""

    def create() -> None:
        command = [sys.executable, "-m", "app", "create-superuser", f"--email={SUPERUSER['email']}", "--full-name=Root"]
        subprocess.run(command, cwd=tmp_path, env=clean_environment, input=SUPERUSER["password"], text=True, check=True)

    return create


async def test_operations_can_be_executed_in_swagger_ui(
    start_server: StartServer, visit: Visit, create_superuser: Callable[[], None]
) -> None:
    url = start_server()
    await visit.page.goto(f"{url}/docs")

    for probe in ("health", "live", "ready"):
        assert (await execute(visit.page, f"health-{probe}"))[0] == 200
    await use_account(visit.page)
    create_superuser()
    await list_users_as_superuser(visit.page)

    # Chromium logs each error response to the console. There must be no other messages.
    assert visit.console == ["Failed to load resource: the server responded with a status of 400 (Bad Request)"]
    assert visit.external_requests(url) == []


async def test_docs_pages_work_below_a_path_prefix(start_server: StartServer, visit: Visit) -> None:
    url = start_server("--root-path=/api")
    page = visit.page

    async def strip_prefix(route: Route) -> None:
        await route.continue_(url=route.request.url.replace("/api/", "/", 1))

    await page.route("**/api/**", strip_prefix)
    await page.goto(f"{url}/api/docs")
    status, _ = await execute(page, "users-create_user")
    await page.goto(f"{url}/api/redoc")
    await expect(page.locator('[id="tag/users/operation/create_user"]')).to_be_visible()

    assert status == 201
    assert visit.console == []
    assert visit.external_requests(f"{url}/api/") == []


async def test_screenshot_for_the_readme_can_be_taken(
    start_server: StartServer, chromium: Browser, tmp_path: Path
) -> None:
    """To update the image of the docs page in the README, run this test with `DOCS_SCREENSHOT=.github/docs.png`."""
    file = Path(os.environ.get("DOCS_SCREENSHOT", tmp_path / "docs.png"))
    page = await chromium.new_page(viewport={"width": 960, "height": 1145}, device_scale_factor=1.5)
    await page.goto(f"{start_server()}/docs")
    await execute(page, "users-create_user")
    await page.add_style_tag(content="textarea { height: 110px !important; min-height: 0 !important }")
    await page.locator("#operations-users-create_user").evaluate("element => element.scrollIntoView()")

    png = await page.screenshot(path=file, animations="disabled")

    assert png.startswith(b"\x89PNG")
    assert len(png) < 200_000
    await page.close()
