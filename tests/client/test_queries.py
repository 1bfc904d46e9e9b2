"""Criteria: how they are made, and that they match here what they match in the server."""

from __future__ import annotations

import datetime
import enum
import json
import uuid
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import orisun
from orisun import EVERYTHING, Criterion, Position, where
from orisun_server.core.criteria import query as server_query
from orisun_server.core.matching import Matcher
from tests.property.test_matching_sql import KEYS, documents, types
from tests.property.test_matching_sql import values as json_texts

#: a busy machine is no failure
quietly = hypothesis_settings(deadline=None, suppress_health_check=list(HealthCheck))


class Colour(enum.Enum):
    RED = "red"


def event(event_type: str, raw: str) -> orisun.Event:
    return orisun.Event("1", event_type, {}, {}, Position(1, 0), datetime.datetime.now(datetime.UTC), raw)


def test_where() -> None:
    assert where(b=1, a="x") == orisun.Query((Criterion((("a", "x"), ("b", "1"))),))
    assert where("A", "B", a="x").criteria == (
        Criterion((("a", "x"), ("eventType", "A"))),
        Criterion((("a", "x"), ("eventType", "B"))),
    )
    assert where(event_type="A") == where(eventType="A") == where("A") == where({"event_type": "A"})
    assert where(a=1) | where(a=1) | where(a=2) == where(a=1) | where(a=2)
    assert where(a=1) | EVERYTHING == EVERYTHING | where(a=1) == EVERYTHING
    assert str(where("A", a=1) | where(b=2)) == "a = 1 and eventType = A or b = 2"
    assert str(EVERYTHING) == "everything"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        (True, "true"),
        (7, "7"),
        (1.5, "1.5"),
        (1e22, "10000000000000000000000"),
        (1e-5, "0.00001"),
        (-0.0, "0.0"),
        (Decimal("1.10"), "1.10"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (datetime.date(2024, 2, 3), "2024-02-03"),
        (Colour.RED, "red"),
    ],
)
def test_values_of_keys(value: object, text: str) -> None:
    assert where(key=value) == orisun.Query((Criterion((("key", text),)),))


@pytest.mark.parametrize("value", [None, {"a": 1}, [1], b"x", object()])
def test_what_cannot_be_compared(value: object) -> None:
    with pytest.raises(orisun.InvalidArgument, match='"key" cannot be compared'):
        where(key=value)


def test_nothing_is_not_everything() -> None:
    with pytest.raises(orisun.InvalidArgument, match="EVERYTHING"):
        where()


def test_null_and_missing_keys_match_no_text() -> None:
    for raw in ('{"a": null}', "{}", '{"b": "None"}'):
        assert not any(where(a=text).matches(event("A", raw)) for text in ("None", "null", ""))


texts = json_texts.map(lambda text: str(json.loads(text))) | json_texts | types
tags = st.dictionaries(
    st.sampled_from([*KEYS, "eventType"]),
    texts,
    min_size=1,
    max_size=2,
)


@quietly
@given(st.lists(tags, min_size=1, max_size=3), st.lists(st.tuples(types, documents), max_size=8))
def test_matches_as_the_server_does(criteria: list[dict[str, str]], stored: list[tuple[str, str]]) -> None:
    wanted = where(criteria[0])
    for criterion in criteria[1:]:
        wanted |= where(criterion)
    matcher = Matcher(server_query(criterion.tags for criterion in wanted.criteria))
    for event_type, raw in stored:
        assert wanted.matches(event(event_type, raw)) == matcher.matches(event_type, raw)


@quietly
@given(documents)
def test_every_value_matches_its_own_text(raw: str) -> None:
    from orisun.jsontext import texts_of
    from orisun_server.core.matching import top_level, value_text

    assert texts_of(raw) == {key: value_text(value) for key, value in top_level(raw).items()}


@quietly
@given(st.integers(-1, 2**62), st.integers(-1, 2**62))
def test_positions_as_text(commit: int, prepare: int) -> None:
    position = Position(commit, prepare)
    assert Position.parse(str(position)) == Position.parse(f"{commit}/{prepare}") == position


@pytest.mark.parametrize("text", ["", "1", "1/2/3", "a,b", "(1, )"])
def test_what_is_no_position(text: str) -> None:
    with pytest.raises(ValueError, match="is not a position"):
        Position.parse(text)


def test_both_spellings_of_the_type_are_the_type() -> None:
    event = orisun.Event("1", "A", {}, {}, orisun.Position(1, 0), datetime.datetime.now(datetime.UTC), "{}")
    for key in ("eventType", "event_type"):
        assert orisun.Query((Criterion(((key, "A"),)),)).matches(event)
        assert not orisun.Query((Criterion(((key, "B"),)),)).matches(event)
