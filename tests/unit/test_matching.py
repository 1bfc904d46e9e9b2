"""The matcher on jsonb's text form, against Python's own json."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orisun_server.core.criteria import query
from orisun_server.core.matching import Matcher, _split, top_level, value_text


def matches(data: str, *tags: tuple[str, str], event_type: str = "Happened") -> bool:
    return Matcher(query([tags])).matches(event_type, data)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("7", "7"),
        ("1.5", "1.5"),
        ("1000000", "1000000"),
        ("0.00001", "0.00001"),
        ("1.50", "1.50"),
        ("1" * 400, "1" * 400),
        ("true", "true"),
        ("false", "false"),
        ('{"a": 1}', '{"a": 1}'),
        ('[1, "a"]', '[1, "a"]'),
        ('"text"', "text"),
        ('"null"', "null"),
        ('"7"', "7"),
        ('""', ""),
        ('"\\u0001\\n\\"é\\\\"', '\x01\n"é\\'),
    ],
)
def test_a_value_matches_its_text_alone(value: str, text: str) -> None:
    data = '{"a": ' + value + ', "b": 1}'
    assert matches(data, ("a", text))
    assert not matches(data, ("a", text + " "))
    assert not matches(data, ("c", text))


def test_null_and_a_missing_key_match_nothing() -> None:
    assert not matches('{"a": null}', ("a", "null"))
    assert not matches('{"a": null}', ("a", ""))
    assert not matches("{}", ("a", ""))


def test_a_repeated_key_must_match_each_time() -> None:
    assert not matches('{"a": "1"}', ("a", "1"), ("a", "2"))
    assert matches('{"a": "1"}', ("a", "1"), ("a", "1"))
    assert not matches("{}", ("eventType", "A"), ("eventType", "B"), event_type="A")


@pytest.mark.parametrize("key", ["eventType", "event_type"])
def test_event_type_is_the_events_type_and_never_data(key: str) -> None:
    assert matches("{}", (key, "Happened"))
    assert not matches('{"eventType": "Other", "event_type": "Other"}', (key, "Other"))
    assert matches('{"a": "1"}', (key, "Happened"), ("a", "1"))
    assert not matches('{"a": "1"}', (key, "Happened"), ("a", "2"))


def test_criteria_are_joined_by_or() -> None:
    matcher = Matcher(query([[("a", "1")], [("b", "2"), ("c", "3")]]))
    assert matcher.matches("T", '{"a": 1}')
    assert matcher.matches("T", '{"b": 2, "c": 3}')
    assert not matcher.matches("T", '{"b": 2}')


@pytest.mark.parametrize("criteria", [[], [[]], [[("a", "1")], []]])
def test_no_criteria_and_an_empty_one_are_the_whole_boundary(criteria: list[list[tuple[str, str]]]) -> None:
    assert Matcher(query(criteria)).matches("T", "{}")
    assert Matcher(query(criteria)).matches_values("T", {})


def test_data_of_any_depth() -> None:
    deep = "[" * 6000 + "]" * 6000
    data = '{"a": ' + deep + ', "b": "x\\"]", "": {"b": "no"}}'
    assert matches(data, ("a", deep))
    assert matches(data, ("b", 'x"]'), ("", '{"b": "no"}'))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=5))
def test_every_value_matches_what_it_prints(content: dict[str, object]) -> None:
    data = json.dumps(content, ensure_ascii=False)
    values = top_level(data)
    assert set(values) == set(content)
    for key, value in content.items():
        text = value_text(values[key])
        expected = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        assert text == (None if value is None else expected)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=5))
def test_the_parser_for_deep_data_agrees_with_the_fast_one(content: dict[str, object]) -> None:
    data = json.dumps(content, ensure_ascii=False)
    assert _split(data.encode()) == {key: bytes(raw) for key, raw in top_level(data).items()}
