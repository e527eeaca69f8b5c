"""JSONModel rejects wrong JSON types, parses types that JSON represents as strings, and limits the cost of errors."""

import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import time
import uuid
from typing import Annotated, Any, ClassVar, Literal

import pytest
from exactjson import JSONModel
from pydantic import BaseModel, Field, HttpUrl, JsonValue, TypeAdapter, ValidationError, create_model
from typing_extensions import TypeAliasType, TypedDict


class Body(JSONModel):
    json_string_pattern: ClassVar = r"^[^\x00]*$"
    json_max_errors: ClassVar = 20


class Role(enum.StrEnum):
    READER = "reader"


class Priority(enum.IntEnum):
    LOW = 1
    HIGH = 3


class Factor(enum.Enum):
    HALF = 0.5
    ONE = 1


class Member(Body):
    name: str
    age: int = 0


class Everything(Body):
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
    labels: dict[str, str] | None = None
    anything: JsonValue = None
    text: str | None = None
    members: list[Member] | None = None
    mixed: list[Member | int] | None = None


ADAPTER = TypeAdapter(Everything)  # FastAPI validates a request body with such an adapter


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"at": "2026-11-29T01:02:03Z"}, dt.datetime(2026, 11, 29, 1, 2, 3, tzinfo=dt.UTC)),
        ({"day": "2026-11-29"}, dt.date(2026, 11, 29)),
        ({"time": "01:02:03"}, dt.time(1, 2, 3)),
        ({"wait": "PT5M"}, dt.timedelta(minutes=5)),
        ({"role": "reader"}, Role.READER),
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
        ({"labels": {"a": "b"}}, {"a": "b"}),
        ({"anything": {"a": [1, 0.5, None, True, "b"]}}, {"a": [1, 0.5, None, True, "b"]}),
        ({"members": [{"name": "Ann"}]}, [Member(name="Ann")]),
        ({"mixed": [1, {"name": "Ann"}]}, [1, Member(name="Ann")]),
    ],
)
def test_json_value_is_parsed(body: dict[str, Any], expected: object) -> None:
    for parsed in (ADAPTER.validate_python(body), ADAPTER.validate_json(json.dumps(body))):
        value = getattr(parsed, next(iter(body)))
        assert value == expected
        assert type(value) is type(expected)


def test_python_value_is_accepted() -> None:
    assert Everything(role=Role.READER, day=dt.date(2026, 11, 29), tags={"a"}).role is Role.READER


@pytest.mark.parametrize(
    "body",
    [
        {"count": "3"},
        {"count": True},
        {"count": 3.0},
        {"share": "3"},
        {"share": math.nan},
        {"share": math.inf},
        {"price": math.nan},
        {"price": "Infinity"},
        {"price": True},
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
        {"by_number": {"one": "one"}},
        {"labels": {"a": "\0"}},
        {"labels": {"\0": "a"}},
        {"labels": {"\ud800": "a"}},
        {"members": [{"name": "Ann", "age": "3"}]},
        {"unknown": 1},
    ],
)
def test_value_of_another_json_type_is_rejected(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(body)
    with pytest.raises(ValidationError):
        ADAPTER.validate_json(json.dumps(body))


@pytest.mark.parametrize("value", ["\0", ["\ud800"], {"\0": 1}, {"a": {"\ud800": 1}}, math.nan, [-math.inf]])
def test_json_value_that_databases_do_not_store_is_rejected(value: object) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python({"anything": value})


class Size(TypedDict):
    width: int


Name = TypeAliasType("Name", str)
Count = TypeAliasType("Count", int)


class Tree(Body):
    count: int = 0
    branches: "list[Tree]" = Field([])


class Author(Body):
    age: int = 0
    books: "list[Book]" = Field([])


class Book(Body):
    pages: int = 0
    author: Author | None = None


@pytest.mark.parametrize(
    ("annotation", "valid", "invalid"),
    [
        (Priority, 3, "3"),
        (Factor, 1, True),
        (dt.date, "2026-11-29", 86400),
        (Name, "a", "a\0"),
        (Count, 3, "3"),
        (dict[Name, Name], {"a": "b"}, {"\0": "b"}),
        (JsonValue, {"a": "b"}, {"\0": "b"}),
        (Size, {"width": 3}, {"width": "3"}),
        (list[Size], [{"width": 3}], [{"width": "3"}]),
        (Member, {"name": "Ann"}, {"name": "a\0"}),
        (Tree, {"branches": [{"count": 3}]}, {"branches": [{"count": "3"}]}),
        (Author, {"books": [{"pages": 3}]}, {"books": [{"pages": "3"}]}),
        (Book, {"author": {"books": [{"author": {"age": 3}}]}}, {"author": {"books": [{"author": {"age": "3"}}]}}),
    ],
)
def test_type_shared_by_fields_is_strict_in_each(annotation: Any, valid: object, invalid: object) -> None:  # noqa: ANN401
    inner = create_model("Inner", __base__=Body, first=annotation, second=annotation)
    outer = create_model("Outer", __base__=Body, inner=inner, items=list[inner], third=annotation)
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
        nested = create_model(f"Level{level}", __base__=Body, inner=nested)

    def depth(schema: Any) -> int:  # noqa: ANN401  schemas nest all kinds of values
        if isinstance(schema, list):
            return max(map(depth, schema), default=0)
        if not isinstance(schema, dict):
            return 0
        inner = max((depth(part) for key, part in schema.items() if key != "metadata"), default=0)
        return inner + (schema.get("type") == "function-before")

    assert depth(TypeAdapter(nested).core_schema) == 1


def test_fields_may_have_any_name_and_default() -> None:
    class Note(Body):
        type: str
        metadata: dict[str, str] = Field({"type": "list"})

    assert Note(type="a").model_dump() == {"type": "a", "metadata": {"type": "list"}}
    for wrong in ({"type": 1}, {"type": "a", "metadata": {"b": "\0"}}):
        with pytest.raises(ValidationError):
            TypeAdapter(Note).validate_python(wrong)


class Permissive(JSONModel):
    text: str
    number: Annotated[float, Field(allow_inf_nan=True)]
    line: Annotated[str, Field(pattern="^[a-z]+$")]
    labels: dict[Annotated[str, Field(pattern="^[a-z]+$")], str] | None = None


def test_constraints_of_a_type_are_kept() -> None:
    valid = {"text": "\0", "number": math.inf, "line": "a", "labels": {"a": "\0"}}
    inherited = create_model("Inherited", __base__=(Body, Permissive))

    TypeAdapter(Permissive).validate_python(valid)
    for wrong in ({"line": "A"}, {"labels": {"A": ""}}):
        with pytest.raises(ValidationError):
            TypeAdapter(Permissive).validate_python(valid | wrong)
    with pytest.raises(ValidationError, match="text"):
        TypeAdapter(inherited).validate_python(valid)


class Plain(BaseModel):
    count: int


@dataclasses.dataclass
class Point:
    x: int


def test_types_are_unchanged_elsewhere() -> None:
    inner = create_model("Inner", __base__=Body, point=Point, points=list[Point], size=Size, day=dt.date, plain=Plain)
    TypeAdapter(inner)
    response = create_model("Response", point=Point, points=list[Point], size=Size, day=dt.date, plain=Plain)

    TypeAdapter(response).validate_python(
        {"point": {"x": "1"}, "points": [{"x": "1"}], "size": {"width": "1"}, "day": 86400, "plain": {"count": "1"}}
    )


def test_readme_says_what_is_not_checked() -> None:
    alias = TypeAliasType("alias", int)
    model = create_model("Limits", __base__=Body, one=Literal[1], plain=Plain, any=Any, counts=(dict[alias, alias], {}))
    valid = {"one": 1, "plain": {"count": 1}, "any": None}

    for unchecked in ({"one": True}, {"plain": {"count": "1", "unknown": 1}}, {"any": {"\0": math.nan}}):
        TypeAdapter(model).validate_python(valid | unchecked)
    TypeAdapter(Everything).validate_json(json.dumps({"anything": {"\0": math.nan}}))
    with pytest.raises(ValidationError):
        TypeAdapter(model).validate_python(valid | {"counts": {"1": 1}})
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(list[Everything]).validate_python(["x"] * 1000)
    assert len(caught.value.errors()) == 1000


HUGE: dict[str, Any] = {
    "unknown fields": {f"k{number}": 1 for number in range(90_000)},
    "wrong keys": {"labels": {f"\0{number}": "" for number in range(60_000)}},
    "wrong values": {"labels": {f"k{number}": 1 for number in range(90_000)}},
    "wrong items": {"members": ["x"] * 250_000},
    "items with wrong fields": {"members": [{"name": 1}] * 80_000},
    "items of no type of a union": {"mixed": ["x"] * 250_000},
    "wrong items of a set": {"tags": list(range(150_000))},
    "unknown fields of items": {"members": [{f"k{number}": 1 for number in range(90_000)}]},
}


@pytest.mark.parametrize("body", HUGE.values(), ids=HUGE.keys())
def test_invalid_body_of_a_mebibyte_costs_little_cpu_time(body: dict[str, Any]) -> None:
    text = json.dumps(body, separators=(",", ":"))
    assert 800_000 < len(text) < 2**20
    parsing = min(cpu_seconds(lambda: json.loads(text)) for _ in range(3))

    def validate() -> None:
        with pytest.raises(ValidationError) as caught:
            ADAPTER.validate_python(body)
        assert len(caught.value.errors()) <= Body.json_max_errors

    # On an idle machine, validation takes at most twice as long as parsing. When each of 90,000 unknown fields was
    # listed as an error, it took 30 times as long.
    assert min(cpu_seconds(validate) for _ in range(3)) < 10 * parsing


def cpu_seconds(function: Any) -> float:  # noqa: ANN401  any callable without arguments
    started_at = time.process_time()
    function()
    return time.process_time() - started_at
