"""One look a second at all boundaries that this server publishes or follows, by one statement.

A publisher that has nothing to do asks PostgreSQL nothing: it rests until somebody wakes it. What wakes it may be lost
(a server is killed between its commit and its signal, an application appends in its own transaction), so this is what
"nothing is skipped" rests on:

1. A publisher rests only after a scan that reached the head, and it cleared its wake-up before that scan began.
2. Commits of a boundary happen in the order of positions (design.md, 1). So what that scan did not see lies beyond the
   publisher's position, and any statement that begins after the commit sees it there.
3. A look begins at most one interval after the one before it has ended, and wakes each publisher whose head lies beyond
   the position that it had when the look began.

So an event rests unpublished for at most an interval and a look; wake-ups only make that shorter. While PostgreSQL is
away looks fail, and so would polls. A boundary that cannot be looked at (its table is locked, or was removed) spoils
the statement of its neighbours, so then each is looked at alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import asyncpg
import structlog

from ..core.position import NOTHING, Position
from ..storage.catalog import Boundary
from ..storage.database import Database
from ..storage.read_sql import ANY_ROW, head
from ..tasks import end

log = structlog.get_logger(__name__)

#: Boundaries of one statement. Its plan holds a lock on each of their tables and about 50 kB of PostgreSQL's memory.
_AT_ONCE = 25
#: Seconds that an answer may take, and one about a single boundary.
_PATIENCE, _PATIENCE_FOR_ONE = 3.0, 1.0
#: Milliseconds that a look waits for the lock of a table while it holds those of others: fewer than PostgreSQL's
#: deadlock_timeout, so that it is the look that gives way to a DROP SCHEMA or a restore, and never the other way.
_LOCK_TIMEOUT = 300


class Watcher(Protocol):
    """Who wants to know what PostgreSQL holds of a boundary."""

    @property
    def boundary(self) -> Boundary: ...

    @property
    def position(self) -> Position:
        """Where it stands."""
        ...

    def saw(self, position: Position, event_id: str | None, head: Position) -> None:
        """It stood at ``position`` when the look began: the id of the event there, and the last event's position."""

    def failed(self) -> None:
        """PostgreSQL refuses to look at the boundary."""


class Lookout:
    """Looks every ``interval`` seconds, over a connection of its own that keeps the statements' plans."""

    def __init__(self, database: Database, interval: float) -> None:
        self._database, self._interval = database, interval
        self._watchers: dict[Watcher, None] = {}
        self._connection: asyncpg.Connection | None = None
        self._prepared: dict[str, asyncpg.prepared_stmt.PreparedStatement] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="lookout")

    async def stop(self) -> None:
        if self._task is not None:
            await end([self._task])
        self._drop_connection()

    def add(self, watcher: Watcher) -> None:
        self._watchers[watcher] = None

    def remove(self, watcher: Watcher) -> None:
        self._watchers.pop(watcher, None)

    async def _run(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self._look()
                failing = False
            except Exception as problem:  # the next look follows, whatever happens
                self._drop_connection()
                if not failing:
                    log.warning("boundaries could not be looked at", reason=str(problem) or type(problem).__name__)
                failing = True

    async def _look(self) -> None:
        # sorted, so that a statement stays the same for as long as the same boundaries are watched
        watchers = sorted(self._watchers, key=lambda watcher: watcher.boundary.name)
        lots = [watchers[first : first + _AT_ONCE] for first in range(0, len(watchers), _AT_ONCE)]
        used = set()
        for lot in lots:
            try:
                used.add(await self._look_at(lot, _PATIENCE))
            except (asyncpg.PostgresError, TimeoutError):
                await self._look_at_each(lot)
        self._prepared = {text: statement for text, statement in self._prepared.items() if text in used}

    async def _look_at_each(self, lot: Sequence[Watcher]) -> None:
        silent = 0
        for watcher in lot:
            try:
                await self._look_at([watcher], _PATIENCE_FOR_ONE)
            except TimeoutError:
                silent += 1
                if silent == len(lot):  # it is not their tables
                    raise
            except asyncpg.LockNotAvailableError:
                pass  # whoever has locked the table is not done
            except asyncpg.PostgresError:
                if watcher in self._watchers:
                    watcher.failed()

    async def _look_at(self, watchers: Sequence[Watcher], patience: float) -> str:
        """The statement that did it."""
        text = " UNION ALL ".join(
            _look_sql(number, watcher.boundary.names.q_events) for number, watcher in enumerate(watchers, start=1)
        )
        positions = [watcher.position for watcher in watchers]
        commits, prepares = [position.commit for position in positions], [position.prepare for position in positions]
        connection = await self._connected()
        async with asyncio.timeout(patience):
            with self._database.guard():
                rows = await self._fetch(connection, text, commits, prepares)
        for number, event_id, commit, prepare in rows:
            watcher = watchers[number - 1]
            if watcher in self._watchers:
                head = NOTHING if prepare is None else Position(commit, prepare)
                watcher.saw(positions[number - 1], event_id, head)
        return text

    async def _fetch(self, connection: asyncpg.Connection, text: str, *arguments: object) -> list[asyncpg.Record]:
        if self._database.pooled:  # a session's settings are not ours
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT}")
                return await connection.fetch(text, *arguments)  # type: ignore[no-any-return]
        statement = self._prepared.get(text)
        if statement is None:
            statement = self._prepared[text] = await connection.prepare(text)
        return await statement.fetch(*arguments)  # type: ignore[no-any-return]

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._drop_connection()
            connection = self._connection = await self._database.dedicated_connection()
            if not self._database.pooled:
                with self._database.guard():
                    await connection.execute(f"SET lock_timeout = {_LOCK_TIMEOUT}")
        return self._connection

    def _drop_connection(self) -> None:
        self._prepared.clear()
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


# $1 commit positions, $2 prepare positions, by number
_ONE = """
SELECT {number}, (SELECT event_id FROM {events} WHERE global_id = ($2::bigint[])[{number}]
                  AND transaction_id = ($1::bigint[])[{number}] AND {rows}), head.transaction_id, head.global_id
FROM (SELECT) AS always LEFT JOIN ({head}) AS head ON true"""


def _look_sql(number: int, events: str) -> str:
    return _ONE.format(number=number, events=events, head=head(events), rows=ANY_ROW)
