"""Between the wire's messages and the core's types; refuses what the wire can say and the core must not see."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from orisun_api import eventstore_pb2 as pb

from ..core.append import Context
from ..core.criteria import WHOLE_BOUNDARY, Criterion, Query, criterion, query
from ..core.event import Command, NewEvent, StoredCommand
from ..core.position import NOTHING, Position
from ..errors import InvalidArgument
from ..storage.names import is_identifier

_MAX_NAME = 255
_EVENTS_FIELD = b"\x0a"  # field 1 of GetEventsResponse, length-delimited


class Limits(NamedTuple):
    """How much one query may name, in criteria and in tags of each criterion."""

    criteria: int
    tags: int


def boundary_name(name: str) -> str:
    """The name of a boundary; raises InvalidArgument when nothing may be called that."""
    if not is_identifier(name):
        raise InvalidArgument(
            f'invalid boundary "{name}": a name is 1 to 63 letters, digits and underscores and begins with no digit'
        )
    return name


def position(message: pb.Position) -> Position:
    return Position(message.commit_position, message.prepare_position)


def position_message(place: tuple[int, int]) -> pb.Position:
    return pb.Position(commit_position=place[0], prepare_position=place[1])


def new_events(events: Iterable[pb.EventToSave]) -> list[NewEvent]:
    return [NewEvent(event.event_id, event.event_type, event.data, event.metadata) for event in events]


def command(message: pb.Command) -> Command:
    return Command(message.command_id, message.type, message.data, message.metadata)


def stored_command(stored: StoredCommand) -> pb.StoredCommand:
    told, place, created = stored
    message = pb.StoredCommand(
        command=pb.Command(command_id=told.command_id, type=told.type, data=told.data, metadata=told.metadata),
        position=position_message(place),
    )
    message.date_created.FromDatetime(created)
    return message


def criteria(message: Iterable[pb.Criterion], limits: Limits) -> Query:
    """The query that criteria mean, in normal form; raises InvalidArgument beyond the limits."""
    return query(_tags(message, limits))


def each(message: Iterable[pb.Criterion], limits: Limits) -> list[Criterion]:
    """Each criterion in normal form, in the order given, also where two are alike."""
    return [criterion(tags) for tags in _tags(message, limits)]


def _tags(message: Iterable[pb.Criterion], limits: Limits) -> list[list[tuple[str, str]]]:
    wanted: list[list[tuple[str, str]]] = []
    for number, item in enumerate(message):
        if number >= limits.criteria:
            raise InvalidArgument(f"Invalid request: more than {limits.criteria} criteria (ORISUN_APPEND_MAX_CRITERIA)")
        if len(item.tags) > limits.tags:
            raise InvalidArgument(
                f"Invalid request: criterion {number} has {len(item.tags)} tags; "
                f"at most {limits.tags} are allowed (ORISUN_APPEND_MAX_TAGS)"
            )
        tags = [(tag.key, tag.value) for tag in item.tags]
        for place, (key, value) in enumerate(tags):
            if "\0" in key or "\0" in value:
                field = "key" if "\0" in key else "value"
                raise InvalidArgument(
                    f"Invalid request: criterion {number} tag {place} {field}: must not contain NUL characters"
                )
        wanted.append(tags)
    return wanted


def context(request: pb.SaveEventsRequest, limits: Limits, *, check_unscoped: bool) -> Context | None:
    """The context that an append is checked against, None for no check (contract.md, SaveEvents).

    ``check_unscoped`` tells whether an expected position without criteria means the whole boundary
    (ORISUN_UNSCOPED_EXPECTED_POSITION=check) or nothing.
    """
    if not request.HasField("query"):
        return None
    asked = request.query
    subset = asked.HasField("subsetQuery")
    if subset and asked.criteria:
        raise InvalidArgument("Invalid request: query: give criteria or subsetQuery, not both")
    expected = position(asked.expected_position) if asked.HasField("expected_position") else NOTHING
    if subset or asked.criteria:
        return Context(expected, criteria(asked.subsetQuery.criteria if subset else asked.criteria, limits))
    if check_unscoped and asked.HasField("expected_position"):
        return Context(expected, WHOLE_BOUNDARY)
    return None


def write_result(last: Position) -> pb.WriteResult:
    commit, prepare = last
    return pb.WriteResult(
        log_position=pb.Position(commit_position=commit, prepare_position=prepare),
        new_global_id=prepare,
        latest_transaction_id=commit,
        latest_global_id=prepare,
    )


def time(stamp: Timestamp, field: str) -> datetime:
    """A point in time, UTC; raises InvalidArgument for what is none."""
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument(f"invalid request: {field} is no point in time of the years 1 to 9999") from None


def page(events: Sequence[bytes]) -> bytes:
    """A serialized GetEventsResponse of serialized events."""
    parts: list[bytes] = []
    for event in events:
        parts += (_EVENTS_FIELD, _varint(len(event)), event)
    return b"".join(parts)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def subscriber_name(name: str) -> str:
    """The name of a subscriber as it is stored: any text is a name, but PostgreSQL's texts hold no NUL."""
    if not name:
        raise InvalidArgument("subscriber_name is required")
    if len(name) > _MAX_NAME:
        raise InvalidArgument(f"subscriber_name: {len(name)} characters; at most {_MAX_NAME} are allowed")
    return "sha256:" + hashlib.sha256(name.encode()).hexdigest() if "\0" in name else name
