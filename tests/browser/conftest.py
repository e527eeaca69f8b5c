"""A real Chromium, headless and without a network, and the service that it visits."""

import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright
from processes import PATIENCE, free_port, get_or_none, until

from tests.conftest import cannot_run

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    """The Chromium of this machine; none is downloaded."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if not program:
        cannot_run("pages in a browser: there is no Chromium")
    # No name leads anywhere, and no address but this machine's.
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=[offline], timeout=PATIENCE * 1000)
        yield browser
        await browser.close()


class Visit:
    """A page, with all that it asked for and complained about."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def elsewhere(self, url: str) -> list[str]:
        """The requests to anything but the service."""
        return [request for request in self.requests if not request.startswith((url, "blob:", "data:"))]


@pytest.fixture
async def visit(chromium: Browser) -> AsyncIterator[Visit]:
    context = await chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE * 1000)
    yield Visit(await context.new_page())
    await context.close()


Serve = Callable[..., str]


@pytest.fixture
def serve(tmp_path: Path, clean_environment: dict[str, str]) -> Iterator[Serve]:
    """Serves the application as a process of its own, on a new database, and gives its URL."""
    processes = []

    def serve(*arguments: str) -> str:
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "app.main:app", f"--port={port}", *arguments]
        processes.append(subprocess.Popen(command, cwd=tmp_path, env=clean_environment))
        url = f"http://127.0.0.1:{port}"
        until(lambda: get_or_none(f"{url}/health"), "the service answers")
        return url

    yield serve
    for process in processes:
        process.terminate()
        process.wait(timeout=PATIENCE)
