"""Events as JSON text, word for word: what commands print, export and import keeps all digits of all numbers."""

from __future__ import annotations

import datetime
import json
from collections.abc import AsyncIterator, Mapping
from json.scanner import NUMBER_RE
from typing import Any, NamedTuple

from orisun_api import eventstore_pb2 as pb

from ..client import Client
from ..codecs import EventTypes
from ..errors import ResourceExhausted, refuse
from ..position import Position
from ..queries import Query
from ..subscription import Subscription
from ..wire import position_message, position_of, query_message
from .output import Column, Raw, Record

_DECODER = json.JSONDecoder()
_WHITESPACE = " \t\r\n"


class RawEvent(NamedTuple):
    """A stored event; data and metadata are JSON texts."""

    position: Position
    event_id: str
    event_type: str
    data: str
    metadata: str
    created_at: datetime.datetime

    @classmethod
    def of(cls, message: pb.Event) -> RawEvent:
        return cls(
            position_of(message.position),
            message.event_id,
            message.event_type,
            message.data or "{}",
            message.metadata or "{}",
            message.date_created.ToDatetime(tzinfo=datetime.UTC),
        )

    def record(self, **more: object) -> Record:
        """Its form in JSON and YAML."""
        return {
            "event_id": self.event_id,
            "event_type": self.event_type,
            "data": Raw(self.data),
            "metadata": Raw(self.metadata),
            "position": position_record(self.position),
            "date_created": timestamp(self.created_at),
            **more,
        }


def position_record(position: Position) -> Record:
    return {"commit_position": position.commit, "prepare_position": position.prepare}


def position_text(record: Record) -> str:
    """The position of a record in a table, as --after takes it."""
    position = record.get("position")
    return f"{position['commit_position']},{position['prepare_position']}" if position else ""


def timestamp(time: datetime.datetime) -> str:
    """RFC 3339, in UTC."""
    return time.astimezone(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def seconds(time: str) -> str:
    """A time of a record in a table."""
    return time[:19].replace("T", " ")


COLUMNS = (
    Column("POSITION", position_text),
    Column("TIME (UTC)", lambda record: seconds(record["date_created"])),
    Column("TYPE", "event_type"),
    Column("DATA", "data", is_flexible=True),
)
WIDE_COLUMNS = (*COLUMNS[:3], Column("ID", "event_id"), Column("DATA", "data"), Column("METADATA", "metadata"))


async def read(
    client: Client,
    boundary: str,
    query: Query,
    *,
    after: Position | None = None,
    start: Position | None = None,
    descending: bool = False,
    limit: int | None = None,
    page_size: int = 1_000,
) -> AsyncIterator[RawEvent]:
    """The stored events that match; the arguments are those of ``Boundary.read``."""
    request = pb.GetEventsRequest(
        boundary=boundary,
        query=query_message(query),
        direction=pb.DESC if descending else pb.ASC,
        after_position=position_message(after) if after is not None else None,
        from_position=position_message(start) if start is not None else None,
    )
    left = limit
    while left is None or left > 0:
        request.count = page_size if left is None else min(page_size, left)
        try:
            page = (await client.calls.unary("events", "GetEvents", request)).events
        except ResourceExhausted:
            if request.count == 1:
                raise
            page_size = max(request.count // 4, 1)
            continue
        for message in page:
            yield RawEvent.of(message)
        if len(page) < request.count:
            return
        left = None if left is None else left - len(page)
        request.ClearField("from_position")
        request.after_position.CopyFrom(page[-1].position)


async def last(client: Client, boundary: str) -> RawEvent | None:
    """The last event of a boundary."""
    async for event in read(client, boundary, Query(), descending=True, limit=1):
        return event
    return None


class RawSubscription(Subscription):
    """A subscription whose events are raw."""

    def __init__(self, client: Client, boundary: str, name: str, query: Query, after: Position | None) -> None:
        super().__init__(client.calls, EventTypes(), boundary=boundary, name=name, query=query, after=after)
        client.streams.add(self)

    def _accept(self, message: pb.Event) -> Any:
        position = position_of(message.position)
        if self._received is not None and position <= self._received:
            return None
        self._received = position
        return RawEvent.of(message)


def members(text: str) -> Mapping[str, tuple[Any, str]]:
    """The members of a JSON object, each with its value and the text that it was written as.

    Raises ValueError that says what is wrong, and never quotes the text.
    """
    place = _skip(text, 0)
    if place >= len(text) or text[place] != "{":
        raise ValueError("no JSON object")
    found: dict[str, tuple[Any, str]] = {}
    place = _skip(text, place + 1)
    while place < len(text) and text[place] != "}":
        key, place = _value(text, place)
        place = _skip(text, place)
        if not isinstance(key, str) or text[place : place + 1] != ":":
            raise ValueError(f"no JSON: a key and a colon are expected at column {place + 1}")
        begin = _skip(text, place + 1)
        value, place = _value(text, begin)
        found[key] = value, text[begin:place]
        place = _skip(text, place)
        if text[place : place + 1] == ",":
            place = _skip(text, place + 1)
        elif text[place : place + 1] != "}":
            raise ValueError(f"no JSON: a comma or a brace is expected at column {place + 1}")
    if _skip(text, place + 1) < len(text) or place >= len(text):
        raise ValueError("no whole JSON object on one line")
    return found


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in _WHITESPACE:
        place += 1
    return place


def _value(text: str, place: int) -> tuple[Any, int]:
    try:
        if (number := NUMBER_RE.match(text, place)) is not None:
            return 0, number.end()  # whatever its size
        return _DECODER.raw_decode(text, place)
    except (ValueError, RecursionError) as problem:
        where = getattr(problem, "pos", place) + 1
        raise ValueError(f"no JSON: {getattr(problem, 'msg', 'nested too deeply')} at column {where}") from None


def event_of_json(text: str) -> pb.EventToSave:
    """The event to save that a JSON object describes: event_id, event_type, data, metadata; the rest is ignored.

    Raises InvalidArgument that says what is wrong, and never quotes the payload.
    """
    try:
        found = members(text)
    except ValueError as problem:
        refuse(str(problem))
    for key in ("event_id", "event_type"):
        value, _ = found.get(key, (None, ""))
        if not isinstance(value, str) or not value:
            told = "is missing" if value in (None, "") else "is no text"
            refuse(f"{key} {told}; an event has event_id, event_type, data and perhaps metadata")
    texts = {}
    for key in ("data", "metadata"):
        value, raw = found.get(key, (None, "{}"))
        if isinstance(value, str):
            raw = value  # as the wire has it: JSON within a text
        elif not isinstance(value, Mapping) and value is not None:
            refuse(f"{key} is no JSON object")
        texts[key] = raw
    try:
        return pb.EventToSave(event_id=found["event_id"][0], event_type=found["event_type"][0], **texts)
    except ValueError:
        refuse("a text that is no Unicode (a lone surrogate) cannot be stored")
