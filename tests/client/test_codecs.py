"""Payloads: dicts, classes of several libraries, bytes, and old versions."""

from __future__ import annotations

import datetime
import enum
import json
import uuid
from dataclasses import dataclass, field, make_dataclass
from decimal import Decimal
from typing import Any, Literal, NamedTuple, NewType

import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import orisun
from orisun import Binary, EventTypes, NewEvent

#: a busy machine is no failure
quietly = hypothesis_settings(deadline=None, suppress_health_check=list(HealthCheck))


class Kind(enum.Enum):
    BOOK = "book"
    FOOD = "food"


@dataclass(frozen=True)
class Line:
    sku: str
    price: Decimal
    kind: Kind = Kind.BOOK


@dataclass(frozen=True)
class Placed:
    order: uuid.UUID
    at: datetime.datetime
    lines: tuple[Line, ...] = ()
    notes: dict[str, str | None] = field(default_factory=dict)
    size: int | str = 0
    weight: float = 0.0
    tags: frozenset[str] = frozenset()
    raw: bytes = b""
    mode: Literal["fast", "slow"] = "fast"


class Paid(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    order: uuid.UUID
    amount: Decimal


class Shipped(msgspec.Struct, forbid_unknown_fields=True):
    order: uuid.UUID
    parcels: list[int] = []


def there_and_back(types: EventTypes, event: NewEvent) -> tuple[str, Any]:
    name, data, metadata = types.encode(event)
    return name, types.decode(name, data, json.loads(metadata or "{}"))


short = st.text(max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | short, lambda inner: st.lists(inner, max_size=3), max_leaves=4
)
lines = st.builds(Line, st.text(), st.decimals(allow_nan=False, allow_infinity=False), st.sampled_from(Kind))
payloads = st.one_of(
    st.builds(
        Placed,
        st.uuids(),
        st.datetimes(timezones=st.just(datetime.UTC)),
        st.lists(lines).map(tuple),
        st.dictionaries(st.text(), st.text() | st.none()),
        st.integers() | st.text(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.frozensets(st.text()),
        st.binary(),
        st.sampled_from(["fast", "slow"]),
    ),
    st.builds(Paid, order=st.uuids(), amount=st.decimals(allow_nan=False, allow_infinity=False)),
    st.builds(Shipped, st.uuids(), st.lists(st.integers(0, 2**60))),
)


@quietly
@given(payloads)
def test_objects_come_back_as_they_were(payload: Any) -> None:
    types = EventTypes()
    for kind in (Placed, Paid, Shipped):
        types.register(kind)
    event = NewEvent.of(payload).with_keys(aggregate_type="Order", aggregate_id="1", aggregate_version=3)
    name, decoded = there_and_back(types, event)
    assert (name, decoded) == (type(payload).__name__, payload)


@quietly
@given(st.dictionaries(short, json_values, max_size=4))
def test_dicts_come_back_as_they_were(payload: dict[str, Any]) -> None:
    assert there_and_back(EventTypes(), NewEvent("A", payload)) == ("A", payload)


@quietly
@given(st.binary())
def test_bytes_travel_as_base64(payload: bytes) -> None:
    assert there_and_back(EventTypes(), NewEvent("A", payload))[1] == Binary(payload)
    named = Binary(payload, "image/png", {"photo": "p-1"})
    assert there_and_back(EventTypes(), NewEvent("A", named).with_keys(aggregate_id="x"))[1] == named


def test_what_dicts_may_hold() -> None:
    when = datetime.datetime(2024, 2, 3, tzinfo=datetime.UTC)
    payload = {"id": uuid.UUID(int=1), "at": when, "price": Decimal("1.10"), "kind": Kind.FOOD, "on": when.date()}
    assert there_and_back(EventTypes(), NewEvent("A", payload))[1] == {
        "id": "00000000-0000-0000-0000-000000000001",
        "at": "2024-02-03T00:00:00+00:00",
        "price": "1.10",
        "kind": "food",
        "on": "2024-02-03",
    }


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"a": object()}, "holds a object, which has no form in JSON"),
        ({"a": float("nan")}, "is no JSON"),
        ({(1, 2): 1}, "keys must be"),
    ],
)
def test_what_has_no_form_in_json(payload: Any, message: str) -> None:
    with pytest.raises(orisun.CodecError, match=message):
        EventTypes().encode(NewEvent("A", payload))


def test_a_payload_that_contains_itself() -> None:
    payload: dict[str, Any] = {}
    payload["me"] = payload
    with pytest.raises(orisun.CodecError):
        EventTypes().encode(NewEvent("A", payload))


def test_upcasters_make_old_versions_new() -> None:
    types = EventTypes()

    @types.event("Opened", version=3)
    @dataclass(frozen=True)
    class Opened:
        account: str
        currency: str
        limit: int

    @types.upcaster("Opened", from_version=1)
    def with_currency(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "currency": "EUR"}

    @types.upcaster("Opened", from_version=2)
    def with_limit(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "limit": 0}

    assert types.decode("Opened", '{"account": "a"}', {}) == Opened("a", "EUR", 0)
    assert types.decode("Opened", '{"account": "a", "currency": "CHF"}', {"event_version": 2}) == Opened("a", "CHF", 0)
    assert there_and_back(types, NewEvent.of(Opened("a", "CHF", 5))) == ("Opened", Opened("a", "CHF", 5))
    assert json.loads(types.encode(NewEvent.of(Opened("a", "CHF", 5)))[2]) == {"event_version": 3}


def test_upcasters_of_dicts() -> None:
    types = EventTypes()
    types.upcaster("Opened", from_version=1)(lambda data: {"account": data["name"]})
    assert types.decode("Opened", '{"name": "a"}', {}) == {"account": "a"}
    # what is written now is of the version that the last upcaster leads to
    assert there_and_back(types, NewEvent("Opened", {"account": "a"})) == ("Opened", {"account": "a"})
    old = NewEvent("Opened", {"name": "a"}, metadata={"event_version": 1})
    assert there_and_back(types, old) == ("Opened", {"account": "a"})
    assert json.loads(types.encode(NewEvent("Other", {}))[2] or "{}") == {}


def test_a_dict_of_a_registered_type_is_of_its_version() -> None:
    types = EventTypes()

    @types.event("Opened", version=2)
    @dataclass(frozen=True)
    class Opened:
        account: str

    types.upcaster("Opened", from_version=1)(lambda data: {"account": data["name"]})
    assert there_and_back(types, NewEvent("Opened", {"account": "a"})) == ("Opened", Opened("a"))
    copied = NewEvent.of(Opened("a"), metadata={"event_version": 1})  # the metadata of an event that was read
    assert there_and_back(types, copied) == ("Opened", Opened("a"))


def test_a_payload_that_does_not_fit_names_its_type_and_not_its_content() -> None:
    types = EventTypes()
    types.register(Paid)
    with pytest.raises(orisun.CodecError, match='"Paid" does not fit: ValidationError') as caught:
        types.decode("Paid", '{"order": "secret"}', {})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("data", ['{"order": 7}', '{"order": "x", "at": "y"}', '{"lines": 3}', "{}"])
def test_data_that_does_not_fit_a_dataclass(data: str) -> None:
    types = EventTypes()
    types.register(Placed)
    with pytest.raises(orisun.CodecError, match="does not fit"):
        types.decode("Placed", data, {})


@dataclass(frozen=True)
class Cash:
    amount: Decimal


@dataclass(frozen=True)
class Card:
    amount: Decimal
    number: str = ""


Cents = NewType("Cents", int)


class Place(NamedTuple):
    row: int
    seat: int


@dataclass(frozen=True)
class Booked:
    price: Cents
    places: dict[int, Place]
    waited: datetime.timedelta


class Named(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    first: str = pydantic.Field(alias="firstName")

    @pydantic.computed_field  # type: ignore[prop-decorator] # as pydantic's documents say
    @property
    def initial(self) -> str:
        return self.first[:1]


def test_annotations_of_all_sorts() -> None:
    types = EventTypes()
    types.register(Booked)
    types.register(Named)
    booked = Booked(Cents(5), {3: Place(3, 17)}, datetime.timedelta(minutes=2))
    assert there_and_back(types, NewEvent.of(booked)) == ("Booked", booked)
    named = Named(firstName="ann")
    assert there_and_back(types, NewEvent.of(named)) == ("Named", named)


@pytest.mark.parametrize("annotation", [Cash | Card, datetime.date | datetime.datetime, uuid.UUID | str, "Nowhere"])
def test_what_could_be_stored_and_not_read_is_refused_at_once(annotation: Any) -> None:
    kind = make_dataclass("Unclear", [("value", annotation)])
    with pytest.raises(orisun.InvalidArgument, match="Unclear could be stored, not read again; give a codec="):
        EventTypes().register(kind)


def test_a_model_that_is_written_under_names_that_it_does_not_read() -> None:
    class Renamed(pydantic.BaseModel):
        name: str = pydantic.Field(serialization_alias="called")

    with pytest.raises(orisun.InvalidArgument, match='is written as "called"'):
        EventTypes().register(Renamed)


@pytest.mark.parametrize(
    "config", [pydantic.ConfigDict(populate_by_name=True), pydantic.ConfigDict(validate_by_name=True)]
)
def test_models_of_several_names_are_read_by_those_that_they_name(config: pydantic.ConfigDict) -> None:
    choices, path = pydantic.AliasChoices("x", pydantic.AliasPath("old", "x")), pydantic.AliasPath("old", "x")

    class Unread(pydantic.BaseModel):
        name: str = pydantic.Field(validation_alias=choices)

    class Deep(pydantic.BaseModel):
        name: str = pydantic.Field(validation_alias=path)

    class Chosen(pydantic.BaseModel):
        name: str = pydantic.Field(validation_alias=choices, serialization_alias="x")

    class ByName(pydantic.BaseModel):
        model_config = config
        name: str = pydantic.Field(validation_alias=choices)
        deep: str = pydantic.Field(validation_alias=path)

    class Neither(pydantic.BaseModel):
        model_config = config
        name: str = pydantic.Field(validation_alias=choices, serialization_alias="y")

    types = EventTypes()
    for unread in (Unread, Deep):
        with pytest.raises(orisun.InvalidArgument, match=r'\.name is written as "name" and not read as that'):
            types.register(unread)
    with pytest.raises(orisun.InvalidArgument, match=r'\.name is written as "y" and not read as that'):
        types.register(Neither)
    types.register(Chosen)
    types.register(ByName)
    chosen, named = Chosen.model_validate({"x": "ann"}), ByName.model_validate({"name": "ann", "deep": "b"})
    assert there_and_back(types, NewEvent.of(chosen)) == ("Chosen", chosen)
    assert there_and_back(types, NewEvent.of(named)) == ("ByName", named)


def test_a_model_that_leaves_out_what_it_needs() -> None:
    class Secretive(pydantic.BaseModel):
        name: str = pydantic.Field(exclude=True)

    class Forgetful(pydantic.BaseModel):
        name: str = pydantic.Field(default="", exclude=True)

    types = EventTypes()
    with pytest.raises(orisun.InvalidArgument, match=r"Secretive\.name is required and excluded"):
        types.register(Secretive)
    types.register(Forgetful)
    assert there_and_back(types, NewEvent.of(Forgetful(name="ann"))) == ("Forgetful", Forgetful())


class UserId(str):
    """As applications define them."""


class Masked(UserId):
    def __str__(self) -> str:
        return "masked"


class Row(int):
    pass


class Ratio(float):
    pass


class Order(uuid.UUID):
    pass


class Amount(Decimal):
    pass


class Day(datetime.date):
    pass


@dataclass(frozen=True)
class Special:
    user: Masked
    row: Row
    ratio: Ratio
    order: Order
    amount: Amount
    day: Day
    rows: dict[UserId, Row]
    users: dict[Row, UserId | None]
    ratios: tuple[Ratio, ...] = ()


SPECIAL = Special(
    Masked("u"),
    Row(3),
    Ratio(0.5),
    Order(int=7),
    Amount("1.10"),
    Day(2024, 2, 3),
    {UserId("v"): Row(4)},
    {Row(5): UserId("w"), Row(6): None},
    (Ratio(2.0), Ratio(3)),
)


def test_fields_of_subclasses_of_simple_types() -> None:
    types = EventTypes()
    types.register(Special)
    name, decoded = there_and_back(types, NewEvent.of(SPECIAL))
    assert (name, decoded) == ("Special", SPECIAL)
    kinds = [type(value) for value in (decoded.user, decoded.row, decoded.ratio, decoded.order, decoded.amount)]
    assert kinds == [Masked, Row, Ratio, Order, Amount]
    assert [type(key) for key in (*decoded.rows, *decoded.users)] == [UserId, Row, Row]
    # and of a class that is not registered
    assert json.loads(EventTypes().encode(NewEvent.of(SPECIAL))[1]) == {
        "user": "u",
        "row": 3,
        "ratio": 0.5,
        "order": "00000000-0000-0000-0000-000000000007",
        "amount": "1.10",
        "day": "2024-02-03",
        "rows": {"v": 4},
        "users": {"5": "w", "6": None},
        "ratios": [2.0, 3.0],
    }


@pytest.mark.parametrize(
    ("key", "value"), [("user", 7), ("row", 1.5), ("row", True), ("row", "x"), ("ratio", False), ("order", 3)]
)
def test_values_that_do_not_fit_subclasses_of_simple_types(key: str, value: Any) -> None:
    types = EventTypes()
    types.register(Special)
    stored = json.loads(types.encode(NewEvent.of(SPECIAL))[1])
    with pytest.raises(orisun.CodecError, match="does not fit"):
        types.decode("Special", json.dumps(stored | {key: value}), {})


def test_mistakes_of_registration() -> None:
    types = EventTypes()
    types.register(Paid)
    with pytest.raises(orisun.InvalidArgument, match="registered already"):
        types.register(Paid, "Other")
    with pytest.raises(orisun.InvalidArgument, match="no dataclass"):
        types.register(int)
    with pytest.raises(orisun.InvalidArgument, match="versions begin with 1"):
        types.register(Shipped, version=0)
    types.upcaster("Paid", from_version=1)(dict)
    with pytest.raises(orisun.InvalidArgument, match="already"):
        types.upcaster("Paid", from_version=1)(dict)


def test_keys_do_not_overwrite_the_payload() -> None:
    with pytest.raises(orisun.InvalidArgument, match='"order" is in the payload already'):
        EventTypes().encode(NewEvent("A", {"order": 1}).with_keys(order=2))
    assert json.loads(EventTypes().encode(NewEvent("A", {"order": 1}).with_keys(order=1))[1]) == {"order": 1}


def test_the_origin_of_events() -> None:
    with orisun.origin(correlation_id="c", trace_id="t"):
        with orisun.origin(causation_id="x"):
            assert NewEvent("A").metadata == {"correlation_id": "c", "causation_id": "x", "trace_id": "t"}
        assert NewEvent("A", metadata={"trace_id": "own"}).metadata == {"correlation_id": "c", "trace_id": "own"}
    assert NewEvent("A").metadata == {}


def test_ids_grow_with_time() -> None:
    ids = [orisun.new_id() for _ in range(1_000)]
    assert len(set(ids)) == 1_000
    first = uuid.UUID(ids[0])
    assert (first.version, first.variant) == (7, uuid.RFC_4122)
    assert ids[0][:8] <= ids[-1][:8]
    assert orisun.derived_id("a", "b") == orisun.derived_id("a", "b") != orisun.derived_id("ab", "")
