"""Reads of a boundary: pages, the latest events of criteria, and scans for delivery.

Commits happen in the order of global_id (design.md, 1), so what a statement sees is a prefix of the log, and no later
statement finds an earlier event that was not there before.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

import asyncpg

from ..core.criteria import Criterion, Query
from ..core.event import Command, Event, StoredCommand
from ..core.position import NOTHING, Position
from ..errors import FailedPrecondition, ResourceExhausted
from ..observation import Watch
from . import read_sql
from .catalog import Boundary
from .criteria_sql import Access, access
from .database import Database
from .indexes import Indexes
from .read_sql import Statement
from .shared import SharedReads

#: Events that a scan without an index looks at in one call.
SCAN_BLOCK = 5_000


class Scan(NamedTuple):
    """Part of a scan: ``events`` holds every match after the scan's start up to ``covered``, inclusive."""

    events: list[Event]
    #: Moves on even when nothing matches; the start of the next scan.
    covered: Position
    #: Whether nothing was beyond ``covered`` when the scan read.
    at_head: bool


class Reader:
    """Reads events; ``max_bytes`` bounds the data and metadata of a page. Raises Unavailable when PostgreSQL is.

    ``leave`` is the number of connections of the pool that these reads never take, so that other readers, such as the
    publishers, never wait for theirs.
    """

    def __init__(
        self,
        database: Database,
        indexes: Indexes,
        *,
        max_bytes: int = 64 * 1024 * 1024,
        leave: int = 0,
        watch: Watch | None = None,
    ) -> None:
        self._room: contextlib.AbstractAsyncContextManager[None] = (
            asyncio.Semaphore(max(1, database.read.get_max_size() - leave)) if leave else contextlib.nullcontext()
        )
        self._database, self._indexes, self._max_bytes = database, indexes, max_bytes
        self._watch = watch or Watch()
        self._equal: SharedReads[list[asyncpg.Record]] = SharedReads()

    async def page(
        self,
        boundary: Boundary,
        query: Query,
        count: int,
        *,
        descending: bool = False,
        start: Position | None = None,
        after: Position | None = None,
    ) -> list[Event]:
        """Up to ``count`` events that match, in the order of positions, from ``start`` (inclusive) or ``after``
        (exclusive), which may be any position, not only an event's.

        Raises:
            ResourceExhausted: ``count`` is not 1, and the page has more than ``max_bytes`` bytes.
        """
        bound = None
        if start is not None or after is not None:
            # descending takes what lies before the bound, so there the inclusive start needs the position after it
            exclusive = (after is not None) != descending
            bound = read_sql.normalized(after or start or NOTHING, exclusive=exclusive)
            if bound.commit == 0:
                if descending:
                    return []
                bound = None
        statement = Statement(boundary.names.q_events)
        ready = self._indexes.ready(boundary.name)
        accesses = [access(criterion, ready) for criterion in query]
        select, order = read_sql.rows(statement, accesses, count=count, descending=descending, bound=bound)
        sql = read_sql.bounded(statement, select, order, max_bytes=self._max_bytes + 1, descending=descending)
        started = perf_counter()
        events = await self._events(sql, statement)
        self._seen(boundary, "page", query, accesses, started)
        if count > 1 and _is_over(events, self._max_bytes):
            raise ResourceExhausted(
                f"a page of {count} events has more than {self._max_bytes} bytes; ask for fewer at a time"
            )
        return events

    async def latest(self, boundary: Boundary, criteria: Sequence[Criterion]) -> tuple[list[Event | None], Position]:
        """The latest event of each criterion, in their order, and the greatest of the positions; one snapshot."""
        if not criteria:
            return [], NOTHING
        distinct = list(dict.fromkeys(criteria))
        latest: dict[Criterion, Event] = {}
        rows = await self._equal(
            (boundary.name, tuple(distinct)), functools.partial(self._latest_rows, boundary, distinct)
        )
        for row in rows:
            latest[distinct[row[0]]] = Event._make(row[1:])
        found = [latest.get(criterion) for criterion in criteria]
        if len(found) > 1 and _is_over([event for event in found if event], self._max_bytes):
            raise ResourceExhausted(
                f"the latest events of {len(criteria)} criteria have more than {self._max_bytes} bytes; ask for fewer"
            )
        return found, max((event.position for event in found if event), default=NOTHING)

    async def _latest_rows(self, boundary: Boundary, criteria: Sequence[Criterion]) -> list[asyncpg.Record]:
        statement = Statement(boundary.names.q_events)
        ready = self._indexes.ready(boundary.name)
        accesses = [access(criterion, ready) for criterion in criteria]
        sql = read_sql.latest(statement, accesses)
        started = perf_counter()
        rows = await self._fetch(sql, statement)
        self._seen(boundary, "latest", criteria, accesses, started)
        return rows

    async def head(self, boundary: Boundary) -> Position:
        """The position of the last event; NOTHING in an empty boundary."""
        statement = Statement(boundary.names.q_events)
        rows = await self._fetch(read_sql.head(statement.table), statement)
        return Position._make(rows[0]) if rows else NOTHING

    async def look(self, boundary: Boundary, position: Position) -> tuple[str | None, Position]:
        """The id of the event at a position, None where there is none, and the position of the last event of all."""
        statement = Statement(boundary.names.q_events)
        ((event_id, commit, prepare),) = await self._fetch(read_sql.look(statement, position), statement)
        return event_id, NOTHING if prepare is None else Position(commit, prepare)

    async def scan(self, boundary: Boundary, query: Query, after: Position, limit: int, max_bytes: int) -> Scan:
        """Events after a position, in order: at most ``limit``, and no more once they have ``max_bytes`` bytes.

        The cost of a call is bounded also where no index serves: it then looks at SCAN_BLOCK events.
        """
        statement = Statement(boundary.names.q_events)
        ready = self._indexes.ready(boundary.name)
        accesses = [access(criterion, ready) for criterion in query]
        bound: Position | None = read_sql.normalized(after, exclusive=True)
        first = last = None
        if not query:
            end, at_head = after, True
        elif all(one.indexed for one in accesses):
            # The head is read first: the rows' snapshot then holds all that is before it.
            end, at_head = max(after, await self.head(boundary)), True
        else:
            ((first, commit, prepare, at_head),) = await self._fetch(
                read_sql.block(probe := Statement(statement.table), after, SCAN_BLOCK), probe
            )
            if prepare is None or prepare < first:
                return Scan([], after, at_head=True)
            end, bound, last = Position(commit, prepare), None, prepare
        select, order = read_sql.rows(statement, accesses, count=limit, bound=bound, first=first, last=last)
        started = perf_counter()
        events = await self._events(read_sql.bounded(statement, select, order, max_bytes=max_bytes), statement)
        self._seen(boundary, "scan", query, accesses, started)
        if len(events) >= limit or _is_over(events, max_bytes - 1):
            return Scan(events, events[-1].position, at_head=False)
        return Scan(events, max(end, events[-1].position) if events else end, at_head)

    async def commands(
        self, boundary: Boundary, after: Position, count: int, *, descending: bool = False
    ) -> list[StoredCommand]:
        """Up to ``count`` commands stored after a position, in the order of positions; or before it, the latest first.

        Raises ResourceExhausted when they have more than ``max_bytes`` bytes.
        """
        statement = Statement(boundary.names.q_commands)
        sql = read_sql.commands(statement, after, count, self._max_bytes, descending=descending)
        rows = await self._fetch(sql, statement)
        commands = [StoredCommand(Command._make(row[2:6]), Position(row[0], row[1]), row[6]) for row in rows]
        if count > 1 and sum(len(command.data) + len(command.metadata) for command, _, _ in commands) > self._max_bytes:
            raise ResourceExhausted(
                f"a page of {count} commands has more than {self._max_bytes} bytes; ask for fewer at a time"
            )
        return commands

    def _seen(
        self, boundary: Boundary, kind: str, criteria: Sequence[Criterion], accesses: Sequence[Access], started: float
    ) -> None:
        indexed = (access.indexed for access in accesses)
        self._watch.read(boundary.name, kind, zip(criteria, indexed, strict=True), started)

    async def _events(self, sql: str, statement: Statement) -> list[Event]:
        return list(map(Event._make, await self._fetch(sql, statement)))

    async def _fetch(self, sql: str, statement: Statement) -> list[asyncpg.Record]:
        try:
            async with self._room:
                with self._database.guard():
                    rows: list[asyncpg.Record] = await self._database.read.fetch(sql, *statement.arguments)
                    return rows
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError) as error:
            # removed a moment ago; the catalog's next poll tells this server
            raise FailedPrecondition("the boundary is not active any more: its events were removed") from error


def _is_over(events: Sequence[Event], max_bytes: int) -> bool:
    """Whether data and metadata have more than ``max_bytes`` bytes."""
    characters = sum(len(event.data) + len(event.metadata) for event in events)
    if characters > max_bytes or characters * 4 <= max_bytes:
        return characters > max_bytes
    return sum(len(event.data.encode()) + len(event.metadata.encode()) for event in events) > max_bytes
