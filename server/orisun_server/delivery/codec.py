"""Stored events as serialized ``orisun.Event`` messages: what JetStream carries and subscribers receive, unchanged."""

from __future__ import annotations

from datetime import UTC, datetime

from orisun_api import eventstore_pb2

from ..core.event import Event

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_Message = eventstore_pb2.Event


def encode_event(event: Event) -> bytes:
    """A stored event as a serialized ``orisun.Event``.

    upb's setters are faster than wire bytes put together in Python (measured: 630,000 against 430,000 events/s), and
    than its constructor with nested messages (400,000).
    """
    commit, prepare, event_id, event_type, data, metadata, created = event
    message = _Message(event_id=event_id, event_type=event_type, data=data, metadata=metadata)
    # SetInParent: a position (0, 0) and the first second of 1970 are values too
    position = message.position
    position.SetInParent()
    position.commit_position = commit
    position.prepare_position = prepare
    age = created - _EPOCH
    date_created = message.date_created
    date_created.SetInParent()
    date_created.seconds = age.days * 86_400 + age.seconds
    date_created.nanos = age.microseconds * 1_000
    return message.SerializeToString()


def decode_content(body: bytes) -> tuple[str, str]:
    """The event type and the data of a serialized ``orisun.Event``."""
    message = _Message.FromString(body)
    return message.event_type, message.data
