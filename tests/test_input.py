"""`Input`, the base class of request bodies: the JSON values that it accepts, and the cost of its errors."""

import datetime as dt
import decimal
import enum
import json
import time
import uuid
from typing import Any

import httpx
import pytest
from fastapi import HTTPException
from pydantic import Field, HttpUrl, TypeAdapter, ValidationError, create_model
from typing_extensions import TypeAliasType, TypedDict

from app import PREFIX
from app.errors import MAX_DETAILS
from app.schemas import Input
from tests.conftest import Service


class Role(enum.StrEnum):
    READER = "reader"


class Priority(enum.IntEnum):
    LOW = 1
    HIGH = 3


class Factor(enum.Enum):
    HALF = 0.5
    ONE = 1


class Member(Input):
    name: str
    age: int = 0


class Everything(Input):
    at: dt.datetime | None = None
    day: dt.date | None = None
    time: dt.time | None = None
    wait: dt.timedelta | None = None
    role: Role | None = None
    priority: Priority | None = None
    priorities: dict[Priority, Priority] | None = None
    factor: Factor | None = None
    id: uuid.UUID | None = None
    price: decimal.Decimal | None = None
    tags: set[str] | None = None
    point: tuple[int, int] | None = None
    url: HttpUrl | None = None
    by_number: dict[int, str] | None = None
    count: int | None = None
    share: float | None = None
    is_open: bool | None = None
    text: str | None = None
    members: list[Member] | None = None
    mixed: list[Member | int] | None = None


ADAPTER = TypeAdapter(Everything)  # FastAPI builds the same for an annotation


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"at": "2026-11-29T01:02:03Z"}, dt.datetime(2026, 11, 29, 1, 2, 3, tzinfo=dt.UTC)),
        ({"day": "2026-11-29"}, dt.date(2026, 11, 29)),
        ({"time": "01:02:03"}, dt.time(1, 2, 3)),
        ({"wait": "PT5M"}, dt.timedelta(minutes=5)),
        ({"role": "reader"}, Role.READER),
        ({"role": Role.READER}, Role.READER),
        ({"priority": 3}, Priority.HIGH),
        ({"priorities": {"1": 3}}, {Priority.LOW: Priority.HIGH}),
        ({"factor": 0.5}, Factor.HALF),
        ({"id": "6c84fb90-12c4-11e1-840d-7b25c5ee775a"}, uuid.UUID("6c84fb90-12c4-11e1-840d-7b25c5ee775a")),
        ({"price": "1.50"}, decimal.Decimal("1.50")),
        ({"price": 1.5}, decimal.Decimal("1.5")),
        ({"tags": ["a", "b"]}, {"a", "b"}),
        ({"point": [1, 2]}, (1, 2)),
        ({"url": "https://example.com/"}, HttpUrl("https://example.com/")),
        ({"by_number": {"1": "one"}}, {1: "one"}),
        ({"count": 3}, 3),
        ({"share": 3}, 3.0),
        ({"is_open": True}, True),
        ({"members": [{"name": "Ann"}]}, [Member(name="Ann")]),
        ({"mixed": [1, {"name": "Ann"}]}, [1, Member(name="Ann")]),
    ],
)
def test_json_value_is_parsed(body: dict[str, Any], expected: object) -> None:
    parsed = ADAPTER.validate_python(body)

    value = getattr(parsed, next(iter(body)))
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    "body",
    [
        {"count": "3"},
        {"count": True},
        {"count": 3.0},
        {"share": "3"},
        {"is_open": 1},
        {"is_open": "true"},
        {"text": 1},
        {"text": "a\0"},
        {"text": "\ud800"},
        {"role": "writer"},
        {"priority": "3"},
        {"priority": True},
        {"priority": 3.0},
        {"priority": 2},
        {"priorities": {"1": "3"}},
        {"factor": True},
        {"factor": "0.5"},
        {"at": "yesterday"},
        {"at": 86400},
        {"day": 86400},
        {"time": 3},
        {"wait": 3},
        {"wait": True},
        {"tags": "a"},
        {"tags": [1]},
        {"by_number": {"1": 1}},
        {"members": [{"name": "Ann", "age": "3"}]},
        {"unknown": 1},
    ],
)
def test_value_of_another_json_type_is_rejected(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(body)


class Size(TypedDict):
    width: int


Name = TypeAliasType("Name", str)
Count = TypeAliasType("Count", int)


class Tree(Input):
    count: int = 0
    branches: "list[Tree]" = Field([])


@pytest.mark.parametrize(
    ("annotation", "valid", "invalid"),
    [
        (Priority, 3, "3"),
        (Factor, 1, True),
        (dt.date, "2026-11-29", 86400),
        (Name, "a", "a\0"),
        (Count, 3, "3"),
        (Size, {"width": 3}, {"width": "3"}),
        (list[Size], [{"width": 3}], [{"width": "3"}]),
        (Member, {"name": "Ann"}, {"name": "a\0"}),
        (Tree, {"branches": [{"count": 3}]}, {"branches": [{"count": "3"}]}),
    ],
)
def test_type_shared_by_fields_is_strict_in_each(annotation: Any, valid: object, invalid: object) -> None:  # noqa: ANN401
    inner = create_model("Inner", __base__=Input, first=annotation, second=annotation)
    outer = create_model("Outer", __base__=Input, inner=inner, items=list[inner], third=annotation)
    good, bad = {"first": valid, "second": valid}, {"first": valid, "second": invalid}
    body = {"inner": good, "items": [good], "third": valid}

    TypeAdapter(outer).validate_python(body)
    for model, wrong in (
        (inner, bad),
        (outer, body | {"inner": bad}),
        (outer, body | {"items": [bad]}),
        (outer, body | {"third": invalid}),
    ):
        with pytest.raises(ValidationError):
            TypeAdapter(model).validate_python(wrong)


def test_check_of_a_nested_type_is_not_repeated() -> None:
    nested: Any = Everything
    for level in range(3):
        nested = create_model(f"Level{level}", __base__=Input, inner=nested)

    def depth(schema: Any) -> int:  # noqa: ANN401  schemas nest all kinds of values
        if isinstance(schema, list):
            return max(map(depth, schema), default=0)
        if not isinstance(schema, dict):
            return 0
        inner = max((depth(part) for key, part in schema.items() if key != "metadata"), default=0)
        return inner + (schema.get("type") == "function-before")

    assert depth(TypeAdapter(nested).core_schema) == 1


def test_fields_may_have_any_name_and_default() -> None:
    class Note(Input):
        type: str
        metadata: dict[str, str] = Field({"type": "list"})

    assert Note(type="a").model_dump() == {"type": "a", "metadata": {"type": "list"}}
    for wrong in ({"type": 1}, {"type": "a", "metadata": {"b": "\0"}}):
        with pytest.raises(ValidationError):
            TypeAdapter(Note).validate_python(wrong)


HUGE: dict[str, Any] = {
    "unknown fields": {f"k{number}": 1 for number in range(90_000)},
    "wrong items": {"members": ["x"] * 250_000},
    "items with wrong fields": {"members": [{"name": 1}] * 80_000},
    "items of no type of a union": {"mixed": ["x"] * 250_000},
    "wrong items of a set": {"tags": list(range(150_000))},
    "unknown fields of items": {"members": [{f"k{number}": 1 for number in range(90_000)}]},
}


@pytest.mark.parametrize("body", HUGE.values(), ids=HUGE.keys())
def test_invalid_body_of_a_mebibyte_costs_less_than_to_parse_it(body: dict[str, Any]) -> None:
    text = json.dumps(body, separators=(",", ":"))
    assert 800_000 < len(text) < 2**20
    parsing = min(cpu_seconds(lambda: json.loads(text)) for _ in range(3))

    def validate() -> None:
        with pytest.raises(ValidationError) as caught:
            ADAPTER.validate_python(body)
        assert len(caught.value.errors()) <= MAX_DETAILS

    # The ratio is 0.2 on an idle machine. With a list of 90,000 errors, one per unknown field, it was 30.
    assert min(cpu_seconds(validate) for _ in range(3)) < 5 * parsing


def cpu_seconds(function: Any) -> float:  # noqa: ANN401  any callable without arguments
    started_at = time.process_time()
    function()
    return time.process_time() - started_at


@pytest.mark.parametrize("path", ["/auth/logout", "/auth/login", "/users/"])
async def test_huge_invalid_body_returns_short_422(client: httpx.AsyncClient, path: str) -> None:
    response = await client.post(path, json=HUGE["unknown fields"])

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
    async def add(numbers: list[int]) -> int:  # not an Input, so each invalid item is reported
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
