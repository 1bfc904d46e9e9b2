"""Between the wire's messages and the core's types."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orisun_api import eventstore_pb2 as pb
from orisun_server.core.append import Context
from orisun_server.core.event import Event
from orisun_server.core.position import Position
from orisun_server.delivery.codec import encode_event
from orisun_server.errors import InvalidArgument
from orisun_server.transport import convert
from orisun_server.transport.convert import Limits

LIMITS = Limits(criteria=3, tags=2)


def criterion(**tags: str) -> pb.Criterion:
    return pb.Criterion(tags=[pb.Tag(key=key, value=value) for key, value in tags.items()])


def context(query: pb.SaveQuery | None, *, check_unscoped: bool = True) -> Context | None:
    return convert.context(pb.SaveEventsRequest(query=query), LIMITS, check_unscoped=check_unscoped)


POSITION = pb.Position(commit_position=7, prepare_position=5)


def test_no_query_is_no_check() -> None:
    assert context(None) is None
    assert context(pb.SaveQuery()) is None


def test_criteria_and_subset_query_mean_the_same() -> None:
    wanted = Context(Position(7, 5), ((("a", "1"),),))
    assert context(pb.SaveQuery(expected_position=POSITION, criteria=[criterion(a="1")])) == wanted
    subset = pb.Query(criteria=[criterion(a="1")])
    assert context(pb.SaveQuery(expected_position=POSITION, subsetQuery=subset)) == wanted


def test_criteria_without_expected_position_expect_nothing() -> None:
    assert context(pb.SaveQuery(criteria=[criterion(a="1")])) == Context(Position(-1, -1), ((("a", "1"),),))
    assert context(pb.SaveQuery(subsetQuery=pb.Query())) == Context(Position(-1, -1), ())


def test_an_expected_position_of_zeros_is_one() -> None:
    assert context(pb.SaveQuery(expected_position=pb.Position())) == Context(Position(0, 0), ())


def test_an_unscoped_expected_position_is_checked_or_ignored() -> None:
    query = pb.SaveQuery(expected_position=POSITION)
    assert context(query) == Context(Position(7, 5), ())
    assert context(query, check_unscoped=False) is None
    # an empty subsetQuery is a scope: the whole boundary
    scoped = pb.SaveQuery(expected_position=POSITION, subsetQuery=pb.Query())
    assert context(scoped, check_unscoped=False) == Context(Position(7, 5), ())


def test_a_criterion_without_tags_is_the_whole_boundary() -> None:
    query = pb.SaveQuery(expected_position=POSITION, criteria=[criterion(a="1"), pb.Criterion()])
    assert context(query) == Context(Position(7, 5), ())


def test_criteria_beside_subset_query_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="not both"):
        context(pb.SaveQuery(criteria=[criterion(a="1")], subsetQuery=pb.Query()))


def test_limits_name_what_is_too_much() -> None:
    with pytest.raises(InvalidArgument, match="more than 3 criteria"):
        convert.criteria([criterion(a="1")] * 4, LIMITS)
    with pytest.raises(InvalidArgument, match="criterion 1 has 3 tags"):
        convert.criteria([criterion(a="1"), criterion(a="1", b="2", c="3")], LIMITS)


def test_nul_characters_are_refused_with_their_place() -> None:
    with pytest.raises(InvalidArgument, match="criterion 1 tag 1 value"):
        convert.criteria([criterion(a="1"), criterion(a="1", b="\0")], LIMITS)
    with pytest.raises(InvalidArgument, match="criterion 0 tag 0 key"):
        convert.criteria([criterion(**{"a\0": "1"})], LIMITS)


def test_each_keeps_order_and_repeats() -> None:
    asked = [criterion(b="2", a="1"), criterion(event_type="T"), criterion(b="2", a="1")]
    assert convert.each(asked, LIMITS) == [(("a", "1"), ("b", "2")), (("eventType", "T"),), (("a", "1"), ("b", "2"))]


@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", "ä", "a" * 64, "a\0"])
def test_boundary_names_that_cannot_be(name: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        convert.boundary_name(name)
    assert str(refused.value).startswith(f'invalid boundary "{name}": ')


def test_boundary_names_that_can_be() -> None:
    for name in ("a", "_", "A1_b", "x" * 63):
        assert convert.boundary_name(name) == name


def test_write_result_prints_zeros() -> None:
    result = convert.write_result(Position(1, 0))
    assert result.HasField("new_global_id")
    assert result.HasField("latest_global_id")
    assert (result.new_global_id, result.latest_transaction_id, result.latest_global_id) == (0, 1, 0)
    assert (result.log_position.commit_position, result.log_position.prepare_position) == (1, 0)


@settings(deadline=None)
@given(st.lists(st.text(max_size=400), max_size=5))
def test_a_page_is_a_get_events_response(texts: list[str]) -> None:
    created = datetime(2024, 1, 20, 10, 30, tzinfo=UTC)
    events = [Event(9, number, str(number), "T", text, "{}", created) for number, text in enumerate(texts)]
    parsed = pb.GetEventsResponse.FromString(convert.page([encode_event(event) for event in events]))
    assert [(event.event_id, event.data) for event in parsed.events] == [
        (event.event_id, event.data) for event in events
    ]


@settings(deadline=None)
@given(st.text(min_size=1, max_size=255), st.text(min_size=1, max_size=255))
def test_any_text_is_a_subscriber_name_of_its_own(one: str, other: str) -> None:
    names = convert.subscriber_name(one), convert.subscriber_name(other)
    assert all("\0" not in name and len(name) <= 255 for name in names)
    assert (names[0] == names[1]) == (one == other)


def test_subscriber_names_that_cannot_be() -> None:
    with pytest.raises(InvalidArgument, match="subscriber_name is required"):
        convert.subscriber_name("")
    with pytest.raises(InvalidArgument, match="256 characters"):
        convert.subscriber_name("x" * 256)
