"""The documentation pages, used as a person uses them, with nothing but the service to load them from."""

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
from processes import PATIENCE

from app import TITLE
from tests.browser.conftest import Serve, Visit

expect.set_options(timeout=PATIENCE * 1000)

SUPERUSER = {"email": "root@example.com", "password": "a good password"}


async def operations(url: str) -> list[tuple[str, str]]:
    """The tag and the name of every operation."""
    async with httpx.AsyncClient() as client:
        document: dict[str, Any] = (await client.get(f"{url}/openapi.json")).json()
    return [
        (operation["tags"][0], operation["operationId"])
        for methods in document["paths"].values()
        for operation in methods.values()
    ]


async def test_swagger_ui_shows_every_operation(serve: Serve, visit: Visit) -> None:
    url = serve()

    await visit.page.goto(f"{url}/docs")

    await expect(visit.page).to_have_title(f"{TITLE} - Swagger UI")
    for tag, name in await operations(url):
        await expect(visit.page.locator(f"#operations-{tag}-{name}")).to_be_visible()
    assert visit.complaints == []
    assert visit.elsewhere(url) == []


async def test_redoc_shows_every_operation_and_finds_them(serve: Serve, visit: Visit) -> None:
    url = serve()

    await visit.page.goto(f"{url}/redoc")

    await expect(visit.page).to_have_title(f"{TITLE} - ReDoc")
    for tag, name in await operations(url):
        await expect(visit.page.locator(f'[id="tag/{tag}/operation/{name}"]')).to_be_visible()
    await visit.page.get_by_placeholder("Search...").fill("password")
    await expect(visit.page.get_by_role("menuitem").filter(has_text="Change your password").first).to_be_visible()
    assert visit.complaints == []
    assert visit.elsewhere(url) == []


async def execute(page: Page, operation: str, **changes: str) -> tuple[int, Any]:
    """Clicks an operation through, as it stands but for changes to its body; gives the status and the body shown."""
    block = page.locator(f"#operations-{operation}")
    if not await block.locator(".opblock-body").is_visible():
        await block.locator(".opblock-summary-control").click()
        await block.get_by_role("button", name="Try it out").click()
    if changes:
        body = block.locator("textarea.body-param__text")
        await body.fill(json.dumps(json.loads(await body.input_value()) | changes))
    async with page.expect_response(lambda response: response.request.resource_type == "fetch") as answered:
        await block.get_by_role("button", name="Execute").click()
    status = (await answered.value).status
    shown = block.locator(".live-responses-table .response")
    await expect(shown.locator(".response-col_status")).to_contain_text(str(status))
    if status == 204:
        return status, None
    return status, json.loads(await shown.locator(".highlight-code code").first.inner_text())


async def authorize(page: Page, token: str) -> None:
    """Gives the page a token for all requests that follow, in place of the one it has."""
    await page.locator(".scheme-container").get_by_role("button", name="Authorize").click()
    dialog = page.locator(".dialog-ux")
    if await dialog.get_by_role("button", name="Remove authorization").is_visible():
        await dialog.get_by_role("button", name="Remove authorization").click()
    await dialog.get_by_role("textbox").fill(token)
    await dialog.get_by_role("button", name="Apply credentials").click()
    await dialog.get_by_role("button", name="Close").first.click()


async def live(page: Page) -> None:
    """The whole life of a user, by clicking on what is filled in."""
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
    assert await execute(page, "auth-logout") == (204, None)
    assert await execute(page, "users-delete_me") == (204, None)


async def administer(page: Page) -> None:
    """What the superuser does besides, by clicking."""
    _, tokens = await execute(page, "auth-login", **SUPERUSER)
    await authorize(page, tokens["access_token"])
    await execute(page, "users-create_user")

    status, users = await execute(page, "users-list_users")

    assert status == 200
    assert [user["email"] for user in users["items"]] == ["user@example.com", SUPERUSER["email"]]


@pytest.fixture
def create_superuser(tmp_path: Path, clean_environment: dict[str, str]) -> Callable[[], None]:
    """Makes the first superuser, where the service has its database."""

    def create() -> None:
        command = [sys.executable, "-m", "app", "create-superuser", f"--email={SUPERUSER['email']}", "--full-name=Root"]
        subprocess.run(command, cwd=tmp_path, env=clean_environment, input=SUPERUSER["password"], text=True, check=True)

    return create


async def test_a_person_does_everything_by_clicking(
    serve: Serve, visit: Visit, create_superuser: Callable[[], None]
) -> None:
    url = serve()
    await visit.page.goto(f"{url}/docs")

    for probe in ("health", "live", "ready"):
        assert (await execute(visit.page, f"health-{probe}"))[0] == 200
    await live(visit.page)
    create_superuser()
    await administer(visit.page)

    # Chromium says so of any error, and of nothing else.
    assert visit.complaints == ["Failed to load resource: the server responded with a status of 400 (Bad Request)"]
    assert visit.elsewhere(url) == []


async def test_below_the_path_that_a_proxy_takes_off_the_pages_work_too(serve: Serve, visit: Visit) -> None:
    url = serve("--root-path=/api")
    page = visit.page

    async def take_off(route: Route) -> None:
        await route.continue_(url=route.request.url.replace("/api/", "/", 1))

    await page.route("**/api/**", take_off)
    await page.goto(f"{url}/api/docs")
    status, _ = await execute(page, "users-create_user")
    await page.goto(f"{url}/api/redoc")
    await expect(page.locator('[id="tag/users/operation/create_user"]')).to_be_visible()

    assert status == 201
    assert visit.complaints == []
    assert visit.elsewhere(f"{url}/api/") == []


async def test_the_readmes_picture_can_be_taken(serve: Serve, chromium: Browser, tmp_path: Path) -> None:
    """Where the page looks different, `DOCS_PICTURE=.github/docs.png` takes it anew."""
    picture = Path(os.environ.get("DOCS_PICTURE", tmp_path / "docs.png"))
    page = await chromium.new_page(viewport={"width": 960, "height": 640}, device_scale_factor=2)
    await page.goto(f"{serve()}/docs")
    await expect(page.locator("#operations-users-delete_user")).to_be_visible()
    await page.locator(".scheme-container").evaluate("element => element.scrollIntoView()")

    png = await page.screenshot(path=picture, animations="disabled")

    assert png.startswith(b"\x89PNG")
    assert len(png) < 150_000
    await page.close()
