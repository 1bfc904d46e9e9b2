"""Names of PostgreSQL objects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orisun_server.storage.names import BoundaryNames, is_identifier, literal, quote, shortened

IDENTIFIERS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,62}", fullmatch=True)
KINDS = ("events", "sequence", "published", "checkpoints", "append", "event_id_index")


@pytest.mark.parametrize("name", ["a", "_", "A9", "a" * 63, "orisun_test_1"])
def test_identifiers(name: str) -> None:
    assert is_identifier(name)


@pytest.mark.parametrize("name", ["", "9a", "a-b", "a b", "a" * 64, "ä", "a\n", "a.b", 'a"', "a;", "\u0661", "a\u0661"])
def test_what_is_no_identifier(name: str) -> None:
    assert not is_identifier(name)


def test_the_names_of_the_seeds() -> None:
    names = BoundaryNames("public", "orders")
    assert names.events == "orders_orisun_es_event"
    assert names.sequence == "orders_orisun_es_event_global_id_seq"
    assert names.published == "orders_orisun_last_published_event_position"
    assert names.checkpoints == "orders_projector_checkpoint"
    assert names.q_events == '"public"."orders_orisun_es_event"'


@given(st.sets(IDENTIFIERS, min_size=2, max_size=4))
def test_no_two_objects_of_a_schema_have_one_name(boundaries: set[str]) -> None:
    objects = [getattr(BoundaryNames("s", boundary), kind) for boundary in boundaries for kind in KINDS]
    assert len(set(objects)) == len(objects)
    assert all(len(name.encode()) <= 63 for name in objects)


@given(st.text("ab", min_size=50, max_size=63), st.text("ab", min_size=50, max_size=63))
def test_long_names_that_are_alike_stay_apart(one: str, other: str) -> None:
    for kind in KINDS:
        assert (getattr(BoundaryNames("s", one), kind) == getattr(BoundaryNames("s", other), kind)) == (one == other)


def test_63_letters_that_differ_in_the_last() -> None:
    one, other = BoundaryNames("s", "a" * 62 + "b"), BoundaryNames("s", "a" * 62 + "c")
    for kind in KINDS:
        assert getattr(one, kind) != getattr(other, kind)
    assert one.lock_key != other.lock_key


def test_an_index_says_which_boundary_it_is_of() -> None:
    assert BoundaryNames("s", "a_b").index("c", "x") != BoundaryNames("s", "a").index("b_c", "x")
    assert BoundaryNames("s", "a").index("b", "x") != BoundaryNames("s", "a").index("b", "y")
    assert len(BoundaryNames("s", "a" * 63).index("b" * 200, "x").encode()) <= 63


@given(st.text(max_size=80))
def test_shortened_names_fit_and_short_ones_stay(name: str) -> None:
    short = shortened(name)
    assert len(short.encode()) <= 63
    assert short == name or len(name.encode()) > 63


def test_quoting() -> None:
    assert quote('a"b') == '"a""b"'
    assert literal("it's") == "'it''s'"
    assert literal("a\\'b") == " E'a\\\\''b'"
