"""Serialized events read back as they were."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from orisun_api import eventstore_pb2
from orisun_server.core.event import Event
from orisun_server.delivery.codec import decode_content, encode_event

text = st.text(st.characters(exclude_categories=["Cs"]))
number = st.integers(-1, 2**63 - 1)
events = st.builds(Event, number, number, text, text, text, text, st.datetimes(timezones=st.just(UTC)))


@given(events)
def test_an_event_reads_back_as_it_was(event: Event) -> None:
    body = encode_event(event)
    message = eventstore_pb2.Event.FromString(body)
    assert (message.event_id, message.event_type, message.data, message.metadata) == event[2:6]
    assert (message.position.commit_position, message.position.prepare_position) == event.position
    assert message.date_created.ToDatetime(UTC) == event.date_created
    assert decode_content(body) == (event.event_type, event.data)


def test_zeros_are_values() -> None:
    message = eventstore_pb2.Event.FromString(
        encode_event(Event(0, 0, "a", "b", "{}", "{}", datetime.fromtimestamp(0, UTC)))
    )
    assert message.HasField("position")
    assert message.HasField("date_created")
