"""What decisions, commands and aggregate streams need of a store; a server's boundary is one."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .errors import refuse
from .events import Event
from .position import Position
from .queries import EVERYTHING, AppendCondition, Criterion, Query


@dataclass(frozen=True, slots=True)
class Latest:
    """The latest event of each criterion, all from one snapshot."""

    query: Query
    #: One for each of ``query.criteria``, in their order; None where nothing matches.
    events: tuple[Event | None, ...]
    #: The greatest of their positions, ``NOTHING`` when there is none.
    position: Position

    @property
    def event(self) -> Event | None:
        """The latest of them all."""
        return max((event for event in self.events if event), key=lambda event: event.position, default=None)

    @property
    def condition(self) -> AppendCondition:
        """Append only if these are still the latest."""
        return AppendCondition(self.query, self.position)

    def __getitem__(self, criterion: Criterion | Query) -> Event | None:
        """The latest event of a criterion, or of a query that is one criterion. Raises InvalidArgument for others."""
        asked = criterion.criteria if isinstance(criterion, Query) else (criterion,)
        if len(asked) != 1 or asked[0] not in self.query.criteria:
            refuse(f'latest was not asked for "{criterion}" as one criterion; it was asked for "{self.query}"')
        return self.events[self.query.criteria.index(asked[0])]


@dataclass(frozen=True, slots=True)
class Command:
    """A command, to be stored in the same transaction as the events that it led to."""

    command_id: str
    type: str
    #: A dict, or an object whose class has a codec.
    data: Any = field(default_factory=dict)
    #: What is not the command itself: a JSON object.
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredCommand:
    """A command that was stored; its data is a dict."""

    command_id: str
    type: str
    data: Mapping[str, Any]
    metadata: Mapping[str, Any]
    #: The position of the last event that it led to.
    position: Position
    #: When it was stored, in UTC.
    created_at: datetime.datetime


class Store(Protocol):
    """The events of one boundary."""

    @property
    def name(self) -> str:
        """The boundary's name."""

    async def append(
        self,
        events: Iterable[object],
        *,
        condition: AppendCondition | None = None,
        command: Command | None = None,
        timeout: float | None = None,
    ) -> Position:
        """See ``Boundary.append``."""

    def read(
        self,
        query: Query = EVERYTHING,
        *,
        after: Position | None = None,
        start: Position | None = None,
        descending: bool = False,
        limit: int | None = None,
        page_size: int = 500,
    ) -> AsyncIterator[Event]:
        """See ``Boundary.read``."""

    async def latest(self, query: Query, *, timeout: float | None = None) -> Latest:
        """See ``Boundary.latest``."""
