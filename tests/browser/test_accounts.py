"""The pages that links in emails open, tested in a browser that can connect only to this machine."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Page, expect
from processes import TIMEOUT, free_port, get_or_none, until

from tests.browser.conftest import StartServer, Visit
from tests.container.conftest import MAILDEV
from tests.container.engine import Container, run_container, run_docker
from tests.people import PASSWORD, log_in, register
from tests.smtp_server import MailServer, text_of

expect.set_options(timeout=TIMEOUT * 1000)

NEW_PASSWORD = "Tr0ub4dor&3 is shorter"
PHONE = {"width": 360, "height": 640}


@pytest.fixture
def url(start_server: StartServer, mails: MailServer) -> str:
    port = free_port()
    return start_server(
        port=port,
        SMTP_URL=f"smtp://127.0.0.1:{mails.port}",
        PUBLIC_URL=f"http://127.0.0.1:{port}",
        ALLOWED_HOSTS="127.0.0.1",
    )


async def link_from(mails: MailServer, subject: str) -> str:
    """Wait for the email with this subject, and return its link."""
    text = text_of(await mails.wait_for(subject))
    return next(line for line in text.splitlines() if line.startswith("http://"))


async def take_screenshot(visit: Visit, folder: Path, name: str) -> None:
    """Save a screenshot for visual review in the directory that the variable SCREENSHOTS names, or else in `folder`."""
    await visit.page.screenshot(path=Path(os.environ.get("SCREENSHOTS", folder)) / f"{name}.png", full_page=True)


def errors(visit: Visit) -> list[str]:
    """Return the console messages, except Chromium's advice about forms."""
    return [message for message in visit.console if not message.startswith("[DOM]")]


async def assert_fits_and_leaks_nothing(visit: Visit, url: str, token: str) -> None:
    assert await visit.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert token not in visit.page.url
    assert visit.external_requests(url) == []
    for request in visit.requests[1:]:  # the first URL contains the token in its fragment, which is never sent
        assert token not in request


async def test_password_is_set_on_the_page(visit: Visit, url: str, mails: MailServer, tmp_path: Path) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        await register(client)
        await client.post("/auth/password-reset", json={"email": "ann@example.com"})
        link = await link_from(mails, "Set a new password")
        await visit.page.set_viewport_size(PHONE)  # type: ignore[arg-type]  # Playwright has its own type for this dict

        await visit.page.goto(link)
        await expect(visit.page.get_by_label("New password")).to_be_focused()
        await take_screenshot(visit, tmp_path, "password-reset")
        await visit.page.keyboard.type("short")
        await visit.page.keyboard.press("Enter")
        is_valid = await visit.page.get_by_label("New password").evaluate("input => input.checkValidity()")
        await assert_fits_and_leaks_nothing(visit, url, link.partition("#token=")[2])
        sent_early = [request for request in visit.requests if "confirm" in request]
        await visit.page.get_by_label("New password").fill(NEW_PASSWORD)
        await visit.page.get_by_label("Show the password").check()
        await take_screenshot(visit, tmp_path, "password-reset-filled")
        await visit.page.get_by_role("button", name="Set the password").click()
        await expect(visit.page.get_by_role("status")).to_have_text("Your new password is set. You can log in with it.")
        await take_screenshot(visit, tmp_path, "password-reset-done")
        status = (await log_in(client, password=NEW_PASSWORD)).status_code

        await visit.page.goto("about:blank")
        await visit.page.goto(link)
        await visit.page.get_by_label("New password").fill(PASSWORD)
        await visit.page.get_by_role("button").click()
        await expect(visit.page.get_by_role("status")).to_have_text(
            "The link is not valid any more, request another one."
        )
        await expect(visit.page.get_by_role("button")).to_be_hidden()

    assert (is_valid, sent_early, status) == (False, [], 200)
    assert errors(visit) == ["Failed to load resource: the server responded with a status of 400 (Bad Request)"]


async def test_address_is_verified_on_the_page(visit: Visit, url: str, mails: MailServer, tmp_path: Path) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        await register(client)
    link = await link_from(mails, "Verify your email address")
    await visit.page.set_viewport_size(PHONE)  # type: ignore[arg-type]  # Playwright has its own type for this dict

    await visit.page.goto(link)
    await visit.page.get_by_label("Password", exact=True).fill("a wrong password")
    await visit.page.get_by_role("button").click()
    await expect(visit.page.get_by_role("status")).to_have_text("Incorrect password.")
    await take_screenshot(visit, tmp_path, "email-verification-wrong")
    await visit.page.get_by_label("Password", exact=True).fill(PASSWORD)
    await visit.page.keyboard.press("Enter")
    await expect(visit.page.get_by_role("status")).to_have_text("Your email address is verified.")
    await take_screenshot(visit, tmp_path, "email-verification-done")

    await assert_fits_and_leaks_nothing(visit, url, link.partition("#token=")[2])


async def test_link_without_a_token_shows_an_error(visit: Visit, url: str) -> None:
    await visit.page.goto(f"{url}/account/password-reset")

    await expect(visit.page.get_by_role("status")).to_contain_text("This link is incomplete.")
    await expect(visit.page.get_by_role("button")).to_be_hidden()
    assert errors(visit) == []


@pytest.fixture
def maildev(docker: None) -> Iterator[Container]:  # noqa: ARG001  skips the test if there is no Docker engine
    """A mail server with a web page that shows the emails it has received."""
    with run_container(MAILDEV, "--publish=127.0.0.1::1025", "--publish=127.0.0.1::1080") as container:
        until(lambda: get_or_none(f"http://{address_of(container, 1080)}/healthz"), "maildev responds")
        yield container


def address_of(container: Container, port: int) -> str:
    """Return the host address, as `host:port`, at which Docker publishes a container port."""
    return run_docker("port", container.name, f"{port}/tcp").splitlines()[0]


async def click_link_in_mail(visit: Visit, maildev: Container, subject: str) -> Page:
    """Open an email in maildev's web interface, click its link, and return the page that opens."""
    url = f"http://{address_of(maildev, 1080)}"
    # Wait for the email before loading the page, because the page may miss an email that arrives while it loads.
    await asyncio.to_thread(until, lambda: subject in httpx.get(f"{url}/email").text, f"maildev has the mail {subject}")
    await visit.page.goto("about:blank")
    await visit.page.goto(f"{url}/")
    await visit.page.get_by_text(subject).first.click()
    mail = visit.page.frame_locator("iframe").first
    await mail.locator("base[target=_blank]").wait_for(state="attached")  # added when the email has loaded
    async with visit.page.context.expect_page() as opened:
        await mail.get_by_role("link").click()
    return await opened.value


async def test_account_is_verified_and_recovered_by_clicking_the_links_in_maildev(
    visit: Visit, start_server: StartServer, maildev: Container, tmp_path: Path
) -> None:
    port = free_port()
    url = start_server(port=port, SMTP_URL=f"smtp://{address_of(maildev, 1025)}", PUBLIC_URL=f"http://127.0.0.1:{port}")
    async with httpx.AsyncClient(base_url=url) as client:
        await register(client)
        page = await click_link_in_mail(visit, maildev, "Verify your email address")
        await page.get_by_label("Password", exact=True).fill(PASSWORD)
        await page.get_by_role("button").click()
        await expect(page.get_by_role("status")).to_have_text("Your email address is verified.")

        await client.post("/auth/password-reset", json={"email": "ann@example.com"})
        page = await click_link_in_mail(visit, maildev, "Set a new password")
        await take_screenshot(visit, tmp_path, "maildev")
        await page.get_by_label("New password").fill(NEW_PASSWORD)
        await page.get_by_role("button", name="Set the password").click()
        await expect(page.get_by_role("status")).to_have_text("Your new password is set. You can log in with it.")

        tokens = (await log_in(client, password=NEW_PASSWORD)).json()
        me = await client.get("/users/me", headers={"Authorization": f"Bearer {tokens['access_token']}"})

    assert me.json()["email_verified"] is True
