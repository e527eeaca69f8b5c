"""`Input`, the base class of request bodies: the values that it rejects, and the errors in responses."""

import uuid
from typing import Annotated, Any, Literal

import httpx
import pytest
from fastapi import HTTPException
from pydantic import Field, JsonValue

from app import PREFIX
from app.errors import MAX_DETAILS
from app.schemas import Input
from tests.conftest import Service


class Preferences(Input):
    count: int = 0
    share: float = 0
    labels: dict[str, str] | None = None
    extra: JsonValue = None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"count": "1"}', "count"),
        ('{"unknown": 1}', "unknown"),
        ('{"share": NaN}', "share"),
        ('{"labels": {"a": "\\u0000"}}', "labels.a"),
        ('{"labels": {"\\u0000": "a"}}', "labels"),
        ('{"labels": {"\\ud800": "a"}}', "labels"),
        ('{"extra": {"a": {"\\u0000": 1}}}', "extra.dict.a.dict"),
        ('{"extra": [Infinity]}', "extra.list.0.float"),
    ],
)
async def test_value_that_is_not_storable_or_of_another_type_returns_422(
    service: Service, body: str, field: str
) -> None:
    @service.app.post(PREFIX + "/preferences")
    async def save(preferences: Preferences) -> Preferences:
        return preferences

    response = await service.client.post("/preferences", content=body, headers={"Content-Type": "application/json"})

    assert response.status_code == 422
    assert [detail["field"] for detail in response.json()["details"]] == [field]


class ByPost(Input):
    kind: Literal["post"]


class ByPhone(Input):
    kind: Literal["phone"]


class Contact(Input):
    way: Annotated[ByPost | ByPhone, Field(discriminator="kind")]


async def test_unknown_tag_of_a_union_is_not_echoed(service: Service) -> None:
    @service.app.post(PREFIX + "/contacts")
    async def save(contact: Contact) -> Contact:
        return contact

    response = await service.client.post("/contacts", json={"way": {"kind": "hunter2"}})

    assert response.status_code == 422
    assert response.json()["details"] == [{"field": "way", "message": "Not one of the expected tags"}]


@pytest.mark.parametrize("path", ["/auth/logout", "/auth/login", "/users/"])
async def test_huge_invalid_body_returns_short_422(client: httpx.AsyncClient, path: str) -> None:
    response = await client.post(path, json={f"k{number}": 1 for number in range(90_000)})

    assert response.status_code == 422
    assert len(response.content) < 8192
    assert response.json()["error"] == "Validation failed; more than 20 errors are not listed"
    assert response.json()["details"] == [{"field": "body", "message": "Too many errors to list"}]


async def test_longest_list_of_errors_is_below_8_kib(service: Service) -> None:
    fields = {f"{'x' * 60}{number}": 1 for number in range(MAX_DETAILS - 2)}

    response = await service.client.post("/auth/login", json=fields)

    assert response.status_code == 422
    assert len(response.json()["details"]) == MAX_DETAILS
    assert len(response.content) < 8192


async def test_more_errors_than_are_listed_are_counted(service: Service) -> None:
    @service.app.post(PREFIX + "/sum")
    async def add(numbers: list[int]) -> int:  # the body is not an Input, so every invalid item is reported
        return sum(numbers)

    response = await service.client.post("/sum", json=["x"] * 30)

    assert response.status_code == 422
    assert response.json()["error"] == "Validation failed; the first 20 of 30 errors are listed"
    assert len(response.json()["details"]) == MAX_DETAILS


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        ("No seat is left", {"error": "No seat is left", "type": "conflict"}),
        (5, {"error": "5", "type": "conflict"}),
        (
            {"seat": uuid.UUID(int=1)},
            {
                "error": "Conflicts with the current state",
                "type": "conflict",
                "details": {"seat": str(uuid.UUID(int=1))},
            },
        ),
        (
            {"code": "full", "seats": 3},
            {"error": "Conflicts with the current state", "type": "conflict", "details": {"code": "full", "seats": 3}},
        ),
        (["a", 1], {"error": "Conflicts with the current state", "type": "conflict", "details": ["a", 1]}),
        ({1: None}, {"error": "Conflicts with the current state", "type": "conflict", "details": {"1": None}}),
        (None, {"error": "Conflicts with the current state", "type": "conflict"}),
    ],
)
async def test_detail_of_http_exception_is_kept(service: Service, detail: Any, expected: Any) -> None:  # noqa: ANN401
    @service.app.get(PREFIX + "/full")
    async def full() -> None:
        raise HTTPException(409, detail)

    response = await service.client.get("/full")

    assert (response.status_code, response.json()) == (409, expected)


@pytest.mark.parametrize(
    ("status", "detail", "expected"),
    [
        (418, {"code": "teapot"}, {"error": "I'm a Teapot", "type": "http_418", "details": {"code": "teapot"}}),
        (499, {"code": "gone"}, {"error": "Status 499", "type": "http_499", "details": {"code": "gone"}}),
        (499, None, {"error": "Status 499", "type": "http_499"}),
    ],
)
async def test_detail_of_unusual_status_is_kept(service: Service, status: int, detail: Any, expected: Any) -> None:  # noqa: ANN401
    @service.app.get(PREFIX + "/unusual")
    async def unusual() -> None:
        raise HTTPException(status, detail)

    response = await service.client.get("/unusual")

    assert (response.status_code, response.json()) == (status, expected)
