"""Between this library's types and the messages of the wire."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

from orisun_api import eventstore_pb2 as pb

from .codecs import EventTypes
from .errors import CodecError, refuse
from .events import Event, NewEvent
from .jsontext import loads_object
from .position import Position
from .queries import AppendCondition, Query
from .store import Command, StoredCommand


def _kind(value: object) -> str:
    return type(value).__name__


def position_message(position: Position) -> pb.Position:
    commit, prepare = position  # any pair: what was kept as JSON is a list
    return pb.Position(commit_position=commit, prepare_position=prepare)


def position_of(message: pb.Position) -> Position:
    return Position(message.commit_position, message.prepare_position)


def query_message(query: Query) -> pb.Query:
    return pb.Query(criteria=criteria_messages(query))


def criteria_messages(query: Query) -> list[pb.Criterion]:
    if not isinstance(query, Query):
        refuse(f'a query is made by where(...), as in where("OrderPlaced", order="o-1"); this is a {_kind(query)}')
    try:
        return [
            pb.Criterion(tags=[pb.Tag(key=key, value=value) for key, value in criterion.tags])
            for criterion in query.criteria
        ]
    except ValueError:
        refuse("a key or value of the criteria is no Unicode text that can be sent (a lone surrogate)")


def save_query(condition: AppendCondition | None) -> pb.SaveQuery | None:
    if condition is None:
        return None
    if not isinstance(condition, AppendCondition):
        refuse(
            "a condition is that of a decision or of latest(), as in condition=decision.condition, or an "
            f"AppendCondition(query, position); this is a {_kind(condition)}"
        )
    return pb.SaveQuery(
        expected_position=position_message(condition.expected), subsetQuery=query_message(condition.query)
    )


def event_messages(events: Iterable[NewEvent], types: EventTypes) -> list[pb.EventToSave]:
    messages = []
    for number, event in enumerate(events):
        name, data, metadata = types.encode(event)
        for what, value in (("event_id", event.event_id), ("event_type", name)):
            if not isinstance(value, str):
                refuse(f"event {number}: its {what} is a {type(value).__name__}; give a text, as str() makes it")
        try:
            message = pb.EventToSave(event_id=event.event_id, event_type=name, data=data, metadata=metadata)
        except (TypeError, ValueError):
            refuse(f"event {number}: its id, type, data or metadata holds what cannot be sent as Unicode text")
        messages.append(message)
    return messages


def command_message(command: Command, types: EventTypes) -> pb.Command:
    if not isinstance(command, Command):
        refuse(f"a command to store is Command(command_id, type, data); this is a {_kind(command)}")
    name, data, metadata = types.encode(NewEvent(command.type, command.data, command.metadata))
    try:
        return pb.Command(command_id=command.command_id, type=name, data=data, metadata=metadata)
    except (TypeError, ValueError):
        refuse("the command: its id, type, data or metadata holds what cannot be sent as Unicode text")


def command_of(message: pb.StoredCommand) -> StoredCommand:
    command = message.command
    return StoredCommand(
        command.command_id,
        command.type,
        loads_object(command.data),
        loads_object(command.metadata),
        position_of(message.position),
        message.date_created.ToDatetime(tzinfo=datetime.UTC),
    )


def event_of(message: pb.Event, types: EventTypes) -> Event:
    """Raises CodecError, whose message names the event's position."""
    position = position_of(message.position)
    event_type, data = message.event_type, message.data
    try:
        metadata = {} if message.metadata in ("", "{}") else loads_object(message.metadata)
        payload = types.decode(event_type, data, metadata)
    except CodecError as error:
        located = CodecError(f"event at {position}: {error}")
        located.position = position
        raise located from error.__cause__
    created_at = message.date_created.ToDatetime(tzinfo=datetime.UTC)
    return Event(message.event_id, event_type, payload, metadata, position, created_at, data)
