"""Fixtures: a headless Chromium that can connect only to this machine, and a server for it to visit."""

import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from availability import cannot_run
from playwright.async_api import Browser, Page, async_playwright
from processes import TIMEOUT, free_port, get_or_none, until

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    """Run the Chromium that is installed on this machine."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if not program:
        cannot_run("pages in a browser: Chromium is not installed")
    # Prevent Chromium from resolving host names, and from connecting to any address except 127.0.0.1.
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=[offline], timeout=TIMEOUT * 1000)
        yield browser
        await browser.close()


class Visit:
    """A browser page, the URLs that it has requested, and the errors and messages in its console."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.console: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.console.append(message.text))
        page.on("pageerror", lambda error: self.console.append(str(error)))

    def external_requests(self, url: str) -> list[str]:
        """Return the requests to hosts other than the service at `url`."""
        return [request for request in self.requests if not request.startswith((url, "blob:", "data:"))]


@pytest.fixture
async def visit(chromium: Browser) -> AsyncIterator[Visit]:
    context = await chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(TIMEOUT * 1000)
    yield Visit(await context.new_page())
    await context.close()


StartServer = Callable[..., str]


@pytest.fixture
def start_server(tmp_path: Path, clean_environment: dict[str, str]) -> Iterator[StartServer]:
    """Return a function that starts the service with a new database, and returns the service's URL.

    The function takes command-line arguments for Uvicorn and settings for the service.
    """
    processes = []

    def start(*arguments: str, port: int | None = None, **settings: str) -> str:
        port = port or free_port()
        command = [sys.executable, "-m", "uvicorn", "app.main:app", f"--port={port}", *arguments]
        processes.append(subprocess.Popen(command, cwd=tmp_path, env=clean_environment | settings))
        url = f"http://127.0.0.1:{port}"
        until(lambda: get_or_none(f"{url}/health"), "the service responds")
        return url

    yield start
    for process in processes:
        process.terminate()
        process.wait(timeout=TIMEOUT)
