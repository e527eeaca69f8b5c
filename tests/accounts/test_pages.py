"""The pages that links in emails open."""

import re

import httpx
import pytest

from app.settings import Settings
from tests.conftest import change, serve

PAGES = ["password-reset", "email-verification"]


@pytest.mark.parametrize("page", PAGES)
async def test_page_is_static_and_leaks_no_token(client: httpx.AsyncClient, page: str) -> None:
    response = await client.get(f"/account/{page}?token=secret")

    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "secret" not in response.text
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["referrer-policy"] == "no-referrer"
    (policy,) = response.headers.get_list("content-security-policy")
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; ")
    assert "unsafe" not in policy


@pytest.mark.parametrize("page", PAGES)
async def test_page_loads_its_files_and_has_no_inline_code(client: httpx.AsyncClient, page: str) -> None:
    text = (await client.get(f"/account/{page}")).text

    files = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert files == ["account.css", "account.js"]
    for file in files:
        response = await client.get(f"/account/{file}")
        assert response.status_code == 200
        assert response.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script>|<style|style=|\son\w+=|<form[^>]+action=", text)


@pytest.mark.parametrize("page", PAGES)
async def test_page_names_a_route_that_exists(client: httpx.AsyncClient, page: str) -> None:
    text = (await client.get(f"/account/{page}")).text
    (path,) = re.findall(r'data-path="\.\.(/[^"]+)"', text)

    assert (await client.post(path, json={})).status_code == 422


@pytest.mark.parametrize("name", ["missing", "password-reset.html", "..%2fpages.py", "%00", "%ff"])
async def test_unknown_page_returns_404(client: httpx.AsyncClient, name: str) -> None:
    response = await client.get(f"/account/{name}")

    assert response.status_code == 404


async def test_without_mail_there_are_no_pages(settings: Settings) -> None:
    async with serve(change(settings, mail=False)) as service:
        assert (await service.client.get("/account/password-reset")).status_code == 404
