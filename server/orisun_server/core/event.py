"""Events as they are asked to be stored, and as they are stored."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from .position import Position


class NewEvent(NamedTuple):
    """An event to append; ``data`` and ``metadata`` are texts of JSON objects."""

    event_id: str
    event_type: str
    data: str
    metadata: str


class Command(NamedTuple):
    """A command to store beside the events that it led to; ``data`` and ``metadata`` are texts of JSON objects."""

    command_id: str
    type: str
    data: str
    metadata: str


class StoredCommand(NamedTuple):
    """A stored command and the position of the last event of its call; texts as PostgreSQL prints them."""

    command: Command
    position: Position
    date_created: datetime


class Event(NamedTuple):
    """A stored event; ``data`` and ``metadata`` are jsonb's own text, as PostgreSQL prints it.

    The order of the fields is the order of the columns of every statement that reads events.
    """

    commit: int
    prepare: int
    event_id: str
    event_type: str
    data: str
    metadata: str
    date_created: datetime

    @property
    def position(self) -> Position:
        return Position(self.commit, self.prepare)
