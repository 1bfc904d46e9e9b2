"""What may be appended: the rules for events and for a command's context (contract.md, SaveEvents)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from ..errors import InvalidArgument
from .criteria import Query
from .event import NewEvent
from .jsonb import top_level
from .position import Position

_MAX_TEXT = 255
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_NUL_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class Context(NamedTuple):
    """The events that a command decided on, and the latest of them that it saw; ``query`` () is the whole boundary."""

    expected: Position
    query: Query


class CheckedEvent(NamedTuple):
    """An event that obeys the rules, and the raw values of its data's top level, to match it with."""

    event: NewEvent
    values: dict[str, msgspec.Raw]


def checked_events(events: Sequence[NewEvent], max_events: int) -> list[CheckedEvent]:
    """The events in normal form (lower-case UUIDs, "{}" for empty objects).

    Raises InvalidArgument that names the index of the event and the field that is wrong, never its content.
    """
    if not events:
        raise InvalidArgument("Invalid request: no events provided")
    if len(events) > max_events:
        raise InvalidArgument(
            f"Invalid request: {len(events)} events; one call appends at most {max_events} (ORISUN_APPEND_MAX_EVENTS)"
        )
    checked = [_checked(number, event) for number, event in enumerate(events)]
    if len(checked) > 1:
        _refuse_twice(item.event.event_id for item in checked)
    return checked


def _checked(number: int, event: NewEvent) -> CheckedEvent:
    event_id, event_type, data, metadata = event
    _check_text(number, "event_id", event_id)
    _check_text(number, "event_type", event_type)
    data, values = _object(number, "data", data)
    metadata, _ = _object(number, "metadata", metadata)
    if len(event_id) == 36 and _UUID.fullmatch(event_id):
        event_id = event_id.lower()
    return CheckedEvent(NewEvent(event_id, event_type, data, metadata), values)


def _check_text(number: int, field: str, text: str) -> None:
    if not text:
        raise InvalidArgument(f"invalid event: event {number} {field}: must not be empty")
    if len(text) > _MAX_TEXT:
        raise InvalidArgument(
            f"invalid event: event {number} {field}: {len(text)} characters; at most {_MAX_TEXT} are allowed"
        )
    if "\0" in text:
        raise InvalidArgument(f"invalid event: event {number} {field}: must not contain NUL characters")


def _object(number: int, field: str, text: str) -> tuple[str, dict[str, msgspec.Raw]]:
    if not text or text == "null" or (len(text) < 64 and text.strip() == "null"):
        return "{}", {}
    try:
        values = top_level(text)
    except (msgspec.DecodeError, msgspec.ValidationError) as problem:
        raise InvalidArgument(f"invalid event JSON: event {number} {field}: {problem}") from None
    except RecursionError:
        raise InvalidArgument(f"invalid event JSON: event {number} {field}: nested too deeply") from None
    if "\\u0000" in text and _NUL_ESCAPE.search(text):
        raise InvalidArgument(
            f"invalid event JSON: event {number} {field}: \\u0000 cannot be stored; leave it out or encode the text"
        )
    return text, values


def _refuse_twice(event_ids: Iterable[str]) -> None:
    seen: dict[str, int] = {}
    for number, event_id in enumerate(event_ids):
        first = seen.setdefault(event_id, number)
        if first != number:
            raise InvalidArgument(f"invalid event: event {number} event_id: the same as that of event {first}")
