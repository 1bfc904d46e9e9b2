"""The event store as a library, on an application's own asyncpg connection and inside its transactions.

An append is then one with the application's other writes: both are committed, or both are rolled back. It is the same
append as the server's (one function in PostgreSQL, one lock of the boundary), so both may write side by side.

What to know (docs/client/in-process.md): the boundary's lock is held until the transaction ends, so an open transaction
holds up every other append to its boundary; transactions that append to several boundaries take them in one order by
``lock``; and only read committed is possible.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import asyncpg

from ..core.append import Context, checked_command, checked_events
from ..core.criteria import WHOLE_BOUNDARY, Criterion, Query, Tag, criterion, query
from ..core.event import Command, Event, NewEvent
from ..core.position import NOTHING, Position
from ..errors import (
    BoundaryNotActive,
    ContextChanged,
    DuplicateEventId,
    FailedPrecondition,
)
from .borrowed import Borrowed, explained, savepoint
from .boundaries import Boundary
from .criteria_sql import Plans
from .flush import Flush
from .index_catalog import READY, IndexCatalog
from .index_sql import IndexDefinition
from .lane import SHORT_LOG
from .names import quote
from .reads import Reader
from .survey import PATIENCE, UNSERVED, Seen, lookup_sql

if TYPE_CHECKING:
    from orisun import EventTypes, Logger

    from .in_process_boundary import InProcessBoundary

__all__ = [
    "NOTHING",
    "WHOLE_BOUNDARY",
    "Boundary",
    "Command",
    "Context",
    "Criterion",
    "Event",
    "InProcessStore",
    "NewEvent",
    "Position",
    "Query",
    "Tag",
    "criterion",
    "query",
]

#: What the servers LISTEN on; the same as delivery.signals.CHANNEL, which lies above this layer.
CHANNEL = "orisun_events"

_APPENDED, _REPEATED, _CHANGED, _DUPLICATE = range(4)


class InProcessStore:
    """Appends and reads on connections that the caller owns; it keeps no connection and starts no task.

    ``admin_schema`` is where the catalog of boundaries lies (the schema of the admin boundary). Boundaries and READY
    indexes are looked up there through the caller's connection and remembered for ``refresh`` seconds. One object
    serves a whole process. ``logger`` is told of appends, conflicts and reads, with counts and positions (as that of
    ``orisun.connect``).
    """

    def __init__(
        self,
        admin_schema: str = "admin",
        *,
        max_events: int = 10_000,
        refresh: float = 1.0,
        logger: Logger | None = None,
    ) -> None:
        self._schema, self._max_events, self._refresh, self._logger = admin_schema, max_events, refresh, logger
        self._known: dict[str, _Known] = {}

    def boundary(
        self, connection: asyncpg.Connection, name: str, *, types: EventTypes | None = None
    ) -> InProcessBoundary:
        """The boundary as the client has it (``orisun.Store``), on this connection: for ``orisun.decide``,
        ``CommandExecutor``, ``AggregateStream`` and payload classes in the application's own transaction."""
        from .in_process_boundary import InProcessBoundary

        return InProcessBoundary(self, connection, name, types)

    async def append(
        self,
        connection: asyncpg.Connection,
        boundary: str,
        events: Sequence[NewEvent],
        context: Context | None = None,
        *,
        command: Command | None = None,
    ) -> Position:
        """Append the events, all or none, in the connection's transaction (or, without one, in one of its own).

        ``context`` is what the decision rests on: the query, and the position of the latest event of it that was seen
        (``NOTHING`` where there was none). ``command`` is stored along with the events. Returns the position of the
        last event. After a refusal the transaction goes on as if nothing had been tried, except after ``Deadlock``:
        roll back and run the whole transaction again.

        Raises:
            InvalidArgument: An event breaks a rule (docs/guarantees.md).
            ContextChanged: Events of the context came in between, with both positions.
            DuplicateEventId: An event id is stored with other content. (Repeating a whole append is no error.)
            FailedPrecondition: The boundary is not there or not migrated, the transaction is not read committed, or
                the context was not found in time, because no index serves it.
            Deadlock: PostgreSQL ended a circle of transactions that wait for each other.
            Unavailable: The connection broke, or ``lock_timeout`` passed while another transaction held the boundary.
        """
        checked = checked_events(events, self._max_events)
        known = await self._boundary(connection, boundary)
        flush = Flush(known.boundary, known.plans)
        seen = await self._looked_up(connection, known, context) if context is not None else {}
        flush.add(checked, context, checked_command(command) if command is not None else None, seen)
        async with explained(boundary), savepoint(connection):
            row = await connection.fetchrow(flush.statement, *flush.arguments())
        base, status, commits, prepares = tuple(row)[:4]
        known.head = base
        code, found = _APPENDED, Position(base + len(checked), base + len(checked) - 1)
        if status is not None:
            code, found = status[0], Position(commits[0], prepares[0])
        if code in (_APPENDED, _REPEATED):
            if log := self._logger:
                log.debug("appended", boundary=boundary, events=len(checked), position=str(tuple(found)))
            return found
        if code == _CHANGED and context is not None:
            if log := self._logger:
                positions = {"expected": str(tuple(context.expected)), "actual": str(tuple(found))}
                log.info("append conflicts", boundary=boundary, events=len(checked), **positions)
            raise ContextChanged(context.expected, (found.commit, found.prepare))
        raise DuplicateEventId(found[1], checked[found[1]].event.event_id)

    async def lock(self, connection: asyncpg.Connection, *boundaries: str) -> None:
        """Take the locks of all the boundaries that this transaction will append to, in an order that is the same for
        everybody, so that no two transactions wait for each other. Held until the transaction ends.

        Raises FailedPrecondition (no transaction is open, no such boundary), Deadlock, Unavailable.
        """
        if not connection.is_in_transaction():
            raise FailedPrecondition("lock needs an open transaction: the locks would be gone at once")
        keys = sorted({(await self._boundary(connection, name)).boundary.names.lock_key: name for name in boundaries})
        for key in keys:
            async with explained(", ".join(boundaries)), savepoint(connection):
                await connection.execute("SELECT pg_catalog.pg_advisory_xact_lock($1)", key)

    async def read(
        self,
        connection: asyncpg.Connection,
        boundary: str,
        query: Query = WHOLE_BOUNDARY,
        *,
        after: Position | None = None,
        start: Position | None = None,
        count: int = 1_000,
        descending: bool = False,
    ) -> list[Event]:
        """Up to ``count`` events that match, after a position or from ``start`` on (inclusive), in the order of
        positions, those of this transaction included.

        Raises FailedPrecondition (no such boundary), ResourceExhausted (more than 64 MiB), Unavailable.
        """
        known = await self._boundary(connection, boundary)
        reader = Reader(Borrowed(connection), known)  # type: ignore[arg-type] # it needs no more of Indexes than ready
        events = await reader.page(known.boundary, query, count, after=after, start=start, descending=descending)
        if log := self._logger:
            log.debug("read", boundary=boundary, criteria=len(query), asked=count, events=len(events))
        return events

    async def latest(
        self, connection: asyncpg.Connection, boundary: str, criteria: Sequence[Criterion]
    ) -> tuple[list[Event | None], Position]:
        """The latest event of each criterion, in their order, and the greatest position: a context's expected one."""
        known = await self._boundary(connection, boundary)
        reader = Reader(Borrowed(connection), known)  # type: ignore[arg-type]
        return await reader.latest(known.boundary, criteria)

    async def events(
        self,
        connection: asyncpg.Connection,
        boundary: str,
        query: Query = WHOLE_BOUNDARY,
        *,
        after: Position = NOTHING,
        page: int = 1_000,
    ) -> AsyncIterator[Event]:
        """Every event that matches after a position, a page at a time."""
        while events := await self.read(connection, boundary, query, after=after, count=page):
            for event in events:
                yield event
            after = events[-1].position

    async def wake(self, connection: asyncpg.Connection, *boundaries: str) -> None:
        """Tell the servers of the cluster, after the commit, that there is something to deliver.

        Without it they look once a second (ORISUN_PUBLISHER_POLL_INTERVAL). Refused inside a transaction: NOTIFY holds
        an instance-wide lock until the commit.
        """
        if connection.is_in_transaction():
            raise FailedPrecondition("wake comes after the commit: NOTIFY in a transaction holds up all others")
        await connection.execute(
            "SELECT pg_catalog.pg_notify($1, payload) FROM unnest($2::text[]) AS payload",
            CHANNEL,
            [f"{self._schema}:{boundary}" for boundary in boundaries],
        )

    async def _looked_up(
        self, connection: asyncpg.Connection, known: _Known, context: Context
    ) -> dict[Criterion, Seen]:
        """What there is of criteria that no index serves, read before the boundary's lock is taken: under it is left
        what came since. (Read committed: the append's own statement sees that.)"""
        seen: dict[Criterion, Seen] = {}
        for wanted in context.query if known.head >= SHORT_LOG else ():
            if not wanted or (plan := known.plans.access(wanted)).indexed:
                continue
            try:
                async with savepoint(connection):
                    row = await connection.fetchrow(lookup_sql(known.boundary, plan), *plan.values, timeout=PATIENCE)
            except (TimeoutError, asyncpg.QueryCanceledError):
                raise FailedPrecondition(
                    f"looking for the context took too long, because {UNSERVED.format(known.boundary.name)}"
                ) from None
            seen[wanted] = Seen.of(row)
        return seen

    async def _boundary(self, connection: asyncpg.Connection, name: str) -> _Known:
        known = self._known.get(name)
        now = time.monotonic()
        if known is not None and now < known.until:
            return known
        async with explained(name), savepoint(connection):
            schema = await self._schema_of(connection, name)
            records = await IndexCatalog(Borrowed(connection), self._schema).of(name)
        ready = tuple(record.definition for record in records if record.state == READY)
        if known is None or known.boundary.schema != schema or known.plans.indexes != ready:
            known = _Known(Boundary.at(name, schema), Plans(ready))
        known.until = now + self._refresh
        self._known[name] = known
        return known

    async def _schema_of(self, connection: asyncpg.Connection, name: str) -> str:
        try:
            row = await connection.fetchrow(
                f"SELECT namespace, status FROM {quote(self._schema)}.orisun_boundary WHERE name = $1", name
            )
        except asyncpg.UndefinedTableError:
            raise FailedPrecondition(
                f'schema "{self._schema}" has no catalog of boundaries: name the schema of the admin boundary'
                " (InProcessStore(admin_schema=...)), and migrate it: `orisun migrate apply`, or the files of"
                " `orisun migrations generate`"
            ) from None
        if row is None or row["status"] != "ACTIVE":
            raise BoundaryNotActive(name)
        return str(row["namespace"])


class _Known:
    """What is remembered of a boundary; also what a Reader asks for its indexes."""

    def __init__(self, boundary: Boundary, plans: Plans) -> None:
        self.boundary, self.plans, self.until = boundary, plans, 0.0
        self.head = SHORT_LOG  # at least; how long the log is shows at the first append

    def ready(self, _boundary: str) -> tuple[IndexDefinition, ...]:
        return tuple(self.plans.indexes)
