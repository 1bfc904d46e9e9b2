"""Events to append, and stored events."""

from __future__ import annotations

import contextvars
import datetime
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import refuse
from .ids import new_id
from .jsontext import loads_object
from .position import Position

#: Keys of metadata that this library writes and reads.
CORRELATION, CAUSATION, TRACE, VERSION = "correlation_id", "causation_id", "trace_id", "event_version"

#: The content type of bytes that say no other.
OCTETS = "application/octet-stream"

_origin: contextvars.ContextVar[Mapping[str, str] | None] = contextvars.ContextVar("orisun_origin", default=None)


@contextmanager
def origin(
    *, correlation_id: str | None = None, causation_id: str | None = None, trace_id: str | None = None
) -> Iterator[None]:
    """Every ``NewEvent`` made inside the ``with`` block carries these ids in its metadata, unless it has its own.

    Nested blocks add to the outer ones. The block holds for the current task or thread alone.
    """
    given = {CORRELATION: correlation_id, CAUSATION: causation_id, TRACE: trace_id}
    reset = _origin.set({**(_origin.get() or {}), **{key: value for key, value in given.items() if value is not None}})
    try:
        yield
    finally:
        _origin.reset(reset)


def inherited() -> Mapping[str, str]:
    """The ids that the ``origin`` in force gives to new events."""
    return _origin.get() or {}


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to append.

    The id is made here and once, so that repeating an append with the same objects never stores an event twice.
    """

    #: 1 to 255 characters; "" takes the name under which the payload's class is registered, or the class's own name.
    event_type: str
    #: The payload: a dict, ``bytes``, or an object whose class has a codec (see ``EventTypes``).
    data: Any = field(default_factory=dict)
    #: What is not the payload: a JSON object; criteria cannot ask for it.
    metadata: Mapping[str, Any] = field(default_factory=dict)
    #: Unique in its boundary, 1 to 255 characters.
    event_id: str = field(default_factory=new_id)
    #: Further top-level keys of the stored data, for criteria to find the event by.
    keys: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if ids := inherited():
            object.__setattr__(self, "metadata", {**ids, **self.metadata})

    @classmethod
    def of(cls, payload: object, *, metadata: Mapping[str, Any] | None = None, event_id: str | None = None) -> NewEvent:
        """An event of an object whose class names its type."""
        return cls("", payload, metadata or {}, event_id or new_id())

    def caused_by(self, event: Event) -> NewEvent:
        """The same event with its origin: caused by ``event``, and part of the same conversation."""
        ids = {CAUSATION: event.event_id, CORRELATION: event.correlation_id or event.event_id}
        if event.trace_id:
            ids[TRACE] = event.trace_id
        return changed(self, metadata={**self.metadata, **ids})

    def with_keys(self, **keys: object) -> NewEvent:
        """The same event with further keys to find it by."""
        return changed(self, keys={**self.keys, **keys})


@dataclass(frozen=True, slots=True)
class Binary:
    """A payload of any format: its bytes travel as base64 in the stored JSON.

    ``keys`` are top-level keys beside it that criteria can ask for, since bytes cannot be searched.
    """

    payload: bytes = field(repr=False)
    content_type: str = OCTETS
    keys: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """A stored event."""

    #: Unique in its boundary.
    event_id: str
    event_type: str
    #: The payload as its codec made it; a dict where none is registered.
    data: Any
    metadata: Mapping[str, Any]
    #: Where it stands in its boundary.
    position: Position
    #: When it was stored, by PostgreSQL's clock; in UTC.
    created_at: datetime.datetime
    #: The data as the server sent it: JSON text in jsonb's form; "" where it did not come from a server.
    raw_data: str = field(repr=False, default="")

    @property
    def fields(self) -> Mapping[str, Any]:
        """The data's top level as it is stored, whatever its codec and upcasters; read anew at each use."""
        return self.data if not self.raw_data and type(self.data) is dict else loads_object(self.raw_data)

    @property
    def correlation_id(self) -> str | None:
        """Which conversation the event is part of, from its metadata."""
        return self._text(CORRELATION)

    @property
    def causation_id(self) -> str | None:
        """The id of the event or command that led to it, from its metadata."""
        return self._text(CAUSATION)

    @property
    def trace_id(self) -> str | None:
        """The trace that it was made in, from its metadata."""
        return self._text(TRACE)

    @property
    def version(self) -> int:
        """The version of its type that it was stored as, from its metadata; 1 where it names none."""
        version = self.metadata.get(VERSION, 1)
        return version if isinstance(version, int) else 1

    def _text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None


def changed(event: NewEvent, **changes: Any) -> NewEvent:
    """The event with other fields. It keeps the origin that it was made with: a repeated append stays the same."""
    reset = _origin.set(None)
    try:
        return replace(event, **changes)
    finally:
        _origin.reset(reset)


def as_new_event(item: object) -> NewEvent:
    """An item of an append: a NewEvent as it is, any other object as a payload whose class names its type."""
    if isinstance(item, NewEvent):
        return item
    if isinstance(item, Event | str | bytes | dict | list | tuple) or item is None:
        refuse(
            f"a {type(item).__name__} is no event to append: give NewEvent(event_type, data), or an object of a class "
            "with a codec"
        )
    return NewEvent.of(item)
