"""Builds and drops indexes in PostgreSQL, in the background, one server a boundary at a time (lease ``index-build``).

Every step starts from what PostgreSQL says is there, so it does not matter which server did the one before, or where it
died: a build that still runs in PostgreSQL although its server is gone is waited for, what an interrupted one left is
dropped and built again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Iterable

import asyncpg
import structlog

from ..errors import OrisunError, Unavailable
from ..tasks import end
from .database import Database
from .index_catalog import BUILDING, DROPPING, IndexCatalog, IndexRecord
from .index_sql import create_prefix, drop_sql
from .leases import Lease, Leases

log = structlog.get_logger(__name__)

LEASE = "index-build"

#: Boundaries that one server works on at a time: each build reads a whole log, and takes memory and disk of PostgreSQL.
#: One that merely waits for somebody's transaction takes a connection and nothing else, so it is not counted; with
#: these, there are at most so many.
_AT_ONCE, _MOST = 2, 8
#: Seconds between looks at a build that runs: whose is it, is it still wanted, does it work or wait.
_LOOK = 0.5
#: Seconds until a failed build is tried again, doubled each time.
_RETRY, _RETRY_MOST = 1.0, 60.0
#: Statistics of a few rows would mislead the planner about the many that follow; autovacuum makes them in time.
_ANALYZE_FROM = 1_000

_STATE = """
SELECT x.indisvalid,
       EXISTS (SELECT FROM pg_catalog.pg_stat_activity AS a
               WHERE a.datname = current_database() AND a.state = 'active' AND starts_with(a.query, $3)) AS running
FROM (SELECT 1) AS one
LEFT JOIN (pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
           JOIN pg_catalog.pg_index AS x ON x.indexrelid = c.oid)
       ON n.nspname = $1::text::name AND c.relname = $2::text::name
"""
#: $1 a statement, of which PostgreSQL shows the beginning: whether it waits for another transaction.
_WAITS = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity AS a
               WHERE a.datname = current_database() AND a.state = 'active' AND a.wait_event_type = 'Lock'
                 AND a.query <> '' AND starts_with($1, a.query))
"""
#: $1 how the statement of a build begins; ends it.
CANCEL = """
SELECT count(pg_cancel_backend(a.pid)) FROM pg_catalog.pg_stat_activity AS a
WHERE a.datname = current_database() AND a.state = 'active' AND starts_with(a.query, $1)
"""


class IndexBuilder:
    """Works off what is BUILDING and DROPPING.

    ``records`` gives what was last read of the catalog, ``refresh`` reads it again; ``look`` is called when a boundary
    is done, so that the next is looked for.
    """

    def __init__(
        self,
        database: Database,
        leases: Leases,
        catalog: IndexCatalog,
        *,
        records: Callable[[], Iterable[IndexRecord]],
        refresh: Callable[[], Awaitable[None]],
        look: Callable[[], None],
    ) -> None:
        self._database, self._leases, self._catalog = database, leases, catalog
        self._records, self._refresh, self._look = records, refresh, look
        self._tasks: dict[str, asyncio.Task[None]] = {}
        #: Boundaries of these whose statement waits for somebody's transaction.
        self._waiting: set[str] = set()
        #: Of a build that failed: when it may be tried again, and how long to wait after the next failure.
        self._delays: dict[str, tuple[float, float]] = {}

    async def dispatch(self) -> None:
        """Start work on boundaries that need it and that nobody works on. Raises Unavailable."""
        due = {r.boundary for r in self._records() if self._is_due(r) and r.boundary not in self._tasks}
        slots = min(_AT_ONCE + len(self._waiting), _MOST) - len(self._tasks)
        if not due or slots <= 0:
            return
        for lease in await self._leases.acquire_many(LEASE, sorted(due), slots):
            task = asyncio.create_task(self._work(lease), name=f"index-build-{lease.boundary}")
            self._tasks[lease.boundary] = task
            task.add_done_callback(functools.partial(self._done, lease.boundary))

    async def stop(self) -> None:
        """Stop; a build that runs is left to PostgreSQL, and to the server that finds it."""
        await end(list(self._tasks.values()))

    def _done(self, boundary: str, task: asyncio.Task[None]) -> None:
        del self._tasks[boundary]
        self._waiting.discard(boundary)
        if not task.cancelled():
            self._look()

    def _is_due(self, record: IndexRecord) -> bool:
        until, _ = self._delays.get(record.pg_name, (0.0, 0.0))
        return record.state in {BUILDING, DROPPING} and time.monotonic() >= until

    async def _work(self, lease: Lease) -> None:
        connection: asyncpg.Connection | None = None
        try:
            connection = await self._database.dedicated_connection()
            with self._database.guard():
                if not self._database.pooled:
                    # building waits for old transactions, however long they take; it blocks neither appends nor reads
                    await connection.execute("SET statement_timeout = 0; SET lock_timeout = 0")
                while lease.valid and (record := self._next(lease.boundary)) is not None:
                    await self._step(connection, lease, record)
                    await self._refresh()
        except OrisunError as error:
            log.warning("indexes of a boundary wait", boundary=lease.boundary, error=str(error))
        except Exception:
            log.exception("work on the indexes of a boundary failed", boundary=lease.boundary)
        finally:
            if connection is not None:
                # not closed: that would wait for, or cancel, what runs
                connection.terminate()
            await lease.release()

    def _next(self, boundary: str) -> IndexRecord | None:
        due = [record for record in self._records() if record.boundary == boundary and self._is_due(record)]
        return min(due, key=lambda record: record.state != DROPPING, default=None)

    async def _step(self, connection: asyncpg.Connection, lease: Lease, record: IndexRecord) -> None:
        try:
            if record.state == DROPPING:
                await self._drop(connection, lease, record)
            else:
                await self._build(connection, lease, record)
            self._delays.pop(record.pg_name, None)
        except asyncpg.PostgresError as error:
            if connection.is_closed() or isinstance(error, asyncpg.PostgresConnectionError):
                raise
            if record.state == BUILDING and not self._wants(record):
                return
            _, delay = self._delays.get(record.pg_name, (0.0, _RETRY))
            self._delays[record.pg_name] = (time.monotonic() + delay, min(2 * delay, _RETRY_MOST))
            # not the message: it could quote an event
            reason = f"{type(error).__name__} ({error.sqlstate})"
            log.warning(
                "index failed", boundary=record.boundary, index=record.definition.name, error=reason, retry_after=delay
            )
            await self._catalog.failed(record, reason)

    async def _drop(self, connection: asyncpg.Connection, lease: Lease, record: IndexRecord) -> None:
        await connection.execute(CANCEL, create_prefix(record.pg_name))
        # waits for a build that could not be cancelled
        await self._execute(connection, lease, drop_sql(record.names, record.pg_name))
        await self._catalog.forget(record)
        log.info("index dropped", boundary=record.boundary, pg_name=record.pg_name)

    async def _build(self, connection: asyncpg.Connection, lease: Lease, record: IndexRecord) -> None:
        names, pg_name = record.names, record.pg_name
        create = record.definition.create_sql(names, pg_name)
        started = time.monotonic()
        while lease.valid and self._wants(record):
            valid, running = await connection.fetchrow(_STATE, record.schema, pg_name, create_prefix(pg_name))
            if running:
                await self._look_at(record.boundary, create)
                await asyncio.sleep(_LOOK)
            elif valid is None:
                log.info("index build begins", boundary=record.boundary, index=record.definition.name, pg_name=pg_name)
                await self._execute(connection, lease, create, record)
            elif not valid:
                await self._execute(connection, lease, drop_sql(names, pg_name))
            else:
                if await connection.fetchval(f"SELECT 1 FROM {names.q_events} LIMIT 1 OFFSET {_ANALYZE_FROM}"):
                    await self._execute(connection, lease, f"ANALYZE {names.q_events}")
                if await self._catalog.built(record):
                    seconds = round(time.monotonic() - started, 3)
                    log.info("index ready", boundary=record.boundary, index=record.definition.name, seconds=seconds)
                return

    def _wants(self, record: IndexRecord) -> bool:
        """Whether the index is still to be built."""
        return any(other.pg_name == record.pg_name and other.state == BUILDING for other in self._records())

    async def _execute(
        self, connection: asyncpg.Connection, lease: Lease, sql: str, building: IndexRecord | None = None
    ) -> None:
        """Execute to the end; a build is cancelled when it is no longer wanted.

        When this task is cancelled or the lease is lost, the connection is dropped and nothing else: PostgreSQL goes
        on, and who has the lease next waits for it.
        """
        statement = asyncio.ensure_future(connection.execute(sql))
        try:
            while not (await asyncio.wait([statement], timeout=_LOOK))[0]:
                if not lease.valid:
                    raise Unavailable("the lease was lost")
                if building is not None and not self._wants(building):
                    await self._database.admin.execute(CANCEL, create_prefix(building.pg_name))
                await self._look_at(lease.boundary, sql)
            await statement
        finally:
            self._waiting.discard(lease.boundary)
            if not statement.done():
                connection.terminate()
                await asyncio.gather(statement, return_exceptions=True)

    async def _look_at(self, boundary: str, sql: str) -> None:
        """Notice whether the boundary's statement works or waits; where that cannot be asked, nothing has changed."""
        with contextlib.suppress(Unavailable), self._database.guard():
            if await self._database.admin.fetchval(_WAITS, sql):
                self._waiting.add(boundary)
            else:
                self._waiting.discard(boundary)
