"""What pages are made of: criteria as people write them, JSON and charts as they are shown, where sign-in may lead."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orisun_server.admin.web import show
from orisun_server.admin.web.pages.events import parse_query
from orisun_server.admin.web.security import local_path
from orisun_server.core.criteria import query
from orisun_server.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "event_type", "criteria"),
    [
        ("", "", []),
        ("a=b", "", [[("a", "b")]]),
        ("a=b c=d\n\n e=f ", "", [[("a", "b"), ("c", "d")], [("e", "f")]]),
        ('name="Alice Smith" "a key"=1', "", [[("name", "Alice Smith"), ("a key", "1")]]),
        ('q="a \\"b\\" \\u00e9"', "", [[("q", 'a "b" é')]]),
        ("empty=", "", [[("empty", "")]]),
        ("url=x=y", "", [[("url", "x=y")]]),
        ("", "Placed", [[("eventType", "Placed")]]),
        ("a=b\nc=d", "Placed", [[("a", "b"), ("eventType", "Placed")], [("c", "d"), ("eventType", "Placed")]]),
    ],
)
def test_criteria_as_people_write_them(text: str, event_type: str, criteria: list[list[tuple[str, str]]]) -> None:
    assert parse_query(text, event_type) == query(criteria)


@pytest.mark.parametrize("text", ["what", "a=b what", '="x"', 'a="open', 'a="b"c'])
def test_what_is_no_criterion_is_named(text: str) -> None:
    with pytest.raises(InvalidArgument, match="line 1"):
        parse_query(text, "")


_texts = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=8)


@given(st.lists(st.lists(st.tuples(_texts.filter(bool), _texts), min_size=1, max_size=3), max_size=3))
def test_criteria_survive_being_shown(criteria: list[list[tuple[str, str]]]) -> None:
    wanted = query(criteria)
    assert parse_query(show.criteria(wanted), "") == wanted


@given(st.text(max_size=60))
def test_json_is_shown_escaped_whatever_it_is(text: str) -> None:
    shown = str(show.pretty(text)).replace("</span>", "")
    for kind in ("key", "string", "number", "word"):
        shown = shown.replace(f'<span class="json-{kind}">', "")
    assert "<" not in shown


def test_numbers_are_shown_as_they_are_stored() -> None:
    text = str(show.pretty('{"n": 12345678901234567890.50, "e": "<i>"}'))
    assert '<span class="json-number">12345678901234567890.50</span>' in text
    assert "&lt;i&gt;" in text


def test_large_json_is_shown_with_few_marks_and_without_endless_indentation() -> None:
    text = str(show.pretty(json.dumps([{"n": number} for number in range(10_000)])))
    assert text.count("<span") == 2_000
    assert "9999" in text
    deep = "[" * 400 + ",".join(["1"] * 100_000) + "]" * 400
    assert len(str(show.pretty(deep))) < 4 * len(deep)
    assert len(str(show.preview("[" * 400 + "]" * 400))) < 10_000
    assert "open it" in str(show.preview(json.dumps(["<"] * 3_000)))


def test_a_string_that_is_cut_is_looked_at_once() -> None:
    """JSON that is kept as a text has a quote everywhere; looking for the end from each of them would take minutes."""
    text = json.dumps({"a": "x" * 440_000, "b": '"' * 60_000})
    began = time.process_time()
    assert "the rest is left out" in str(show.pretty(text))
    assert time.process_time() - began < 5, "0.1 s, against 20 s and more"


@given(st.lists(st.floats(0, 1e9), max_size=20), st.text(max_size=20))
def test_charts_are_well_formed(values: list[float], label: str) -> None:
    chart = str(show.sparkline(values, label))
    assert chart.count("<svg") == chart.count("</svg>") == (len(values) >= 2)
    assert "nan" not in chart.replace(str(show.escape(label)), "")


@pytest.mark.parametrize(
    ("text", "led"),
    [
        ("/users?page=2", "/users?page=2"),
        ("", "/"),
        ("users", "/"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example/", "/"),
        ("/a\r\nset-cookie: x=y", "/"),
        ("/a\\b", "/"),
    ],
)
def test_sign_in_leads_to_this_server_only(text: str, led: str) -> None:
    assert local_path(text) == led


def test_whose_denials_were_omitted_is_told_in_words() -> None:
    callers = [{"username": "ann", "peer": "10.0.0.1", "count": 5}, {"username": "", "peer": "10.0.0.2", "count": 1}]
    assert show.told(callers) == "ann 10.0.0.1 5, 10.0.0.2 1"
    assert (show.told("text"), show.told(3), show.told(["a", "b"])) == ("text", "3", "a, b")
