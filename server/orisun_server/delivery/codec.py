"""Stored events as serialized ``orisun.Event`` messages: what JetStream carries and subscribers receive, unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from orisun_api import eventstore_pb2

from ..core.event import Event

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_Message = eventstore_pb2.Event


def encode_events(events: Iterable[Event]) -> Iterator[bytes]:
    """Stored events as serialized ``orisun.Event`` messages.

    One message is filled again and again: 1,400,000 events/s, against 680,000 with one each and 430,000 where Python
    puts the wire's bytes together (measured). Its memory grows with what it held, so call this for each page.
    """
    message = _Message()
    # SetInParent: a position (0, 0) and the first second of 1970 are values too
    position, date_created = message.position, message.date_created
    position.SetInParent()
    date_created.SetInParent()
    serialize = message.SerializeToString
    for event in events:
        (
            position.commit_position,
            position.prepare_position,
            message.event_id,
            message.event_type,
            message.data,
            message.metadata,
            created,
        ) = event
        age = created - _EPOCH
        date_created.seconds = age.days * 86_400 + age.seconds
        date_created.nanos = age.microseconds * 1_000
        yield serialize()


def encode_event(event: Event) -> bytes:
    """As ``encode_events``, of one."""
    return next(encode_events((event,)))


def decode_content(body: bytes) -> tuple[str, str]:
    """The event type and the data of a serialized ``orisun.Event``."""
    message = _Message.FromString(body)
    return message.event_type, message.data
