"""What may be appended: the rules for events and for a command's context (contract.md, SaveEvents)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from ..errors import InvalidArgument
from .criteria import Query
from .event import Command, NewEvent
from .jsonb import growth
from .position import Position

_MAX_TEXT = 255
#: Characters that numbers with exponents may add to a text, beside as many as it has: the longest number eight times.
#: Without a bound a short text could be stored that PostgreSQL cannot print and nobody read.
_MAX_GROWTH = 1024 * 1024
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_NUL_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class Context(NamedTuple):
    """The events that a command decided on, and the latest of them that it saw; ``query`` () is the whole boundary."""

    expected: Position
    query: Query


class CheckedEvent(NamedTuple):
    """An event that obeys the rules, and how much longer its data may be as PostgreSQL prints it, in characters."""

    event: NewEvent
    growth: int


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
    checked: list[CheckedEvent] = []
    last_metadata = None
    for number, (given_id, event_type, given_data, given_metadata) in enumerate(events):
        event_id = given_id
        if not (0 < len(event_id) <= _MAX_TEXT and 0 < len(event_type) <= _MAX_TEXT) or "\0" in event_id + event_type:
            _check_text("event", f"event {number} event_id", event_id)
            _check_text("event", f"event {number} event_type", event_type)
        data, longer = _object("event", given_data, number, "data")
        if given_metadata != last_metadata:  # the events of a batch often share it
            metadata, _ = _object("event", given_metadata, number, "metadata")
            last_metadata = given_metadata
        if len(event_id) == 36 and (lower := event_id.lower()) != event_id and _UUID.fullmatch(event_id):
            event_id = lower
        checked.append(CheckedEvent(NewEvent(event_id, event_type, data, metadata), longer))
    if len(checked) > 1:
        _refuse_twice(item.event.event_id for item in checked)
    return checked


def checked_command(command: Command) -> Command:
    """The command in normal form; raises InvalidArgument that names the field that is wrong, never its content."""
    command_id, kind, data, metadata = command
    _check_text("command", "command_id", command_id)
    _check_text("command", "type", kind)
    data, _ = _object("command", data, None, "data")
    metadata, _ = _object("command", metadata, None, "metadata")
    return Command(command_id, kind, data, metadata)


def _check_text(what: str, where: str, text: str) -> None:
    if not text:
        raise InvalidArgument(f"invalid {what}: {where}: must not be empty")
    if len(text) > _MAX_TEXT:
        raise InvalidArgument(f"invalid {what}: {where}: {len(text)} characters; at most {_MAX_TEXT} are allowed")
    if "\0" in text:
        raise InvalidArgument(f"invalid {what}: {where}: must not contain NUL characters")


def _object(what: str, text: str, number: int | None, field: str) -> tuple[str, int]:
    """The text in normal form, and its growth."""
    if not text or text == "null" or (len(text) < 64 and text.strip() == "null"):
        return "{}", 0
    try:
        longer = growth(text, most := len(text) + _MAX_GROWTH)
    except (msgspec.DecodeError, msgspec.ValidationError) as problem:
        reason = str(problem)
    except RecursionError:
        reason = "nested too deeply"
    else:
        if "\\" in text and "\\u0000" in text and _NUL_ESCAPE.search(text):
            reason = "\\u0000 cannot be stored; leave it out or encode the text"
        elif longer > most:
            reason = f"its numbers with exponents are more than {most} characters longer when written out"
        else:
            return text, longer
    where = field if number is None else f"{what} {number} {field}"
    raise InvalidArgument(f"invalid {what} JSON: {where}: {reason}")


def _refuse_twice(event_ids: Iterable[str]) -> None:
    seen: dict[str, int] = {}
    for number, event_id in enumerate(event_ids):
        first = seen.setdefault(event_id, number)
        if first != number:
            raise InvalidArgument(f"invalid event: event {number} event_id: the same as that of event {first}")
