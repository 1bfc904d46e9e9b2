"""Projectors: tables of the admin schema that are built from the events of the admin boundary.

A projector's checkpoint stands in ``{boundary}_projector_checkpoint``. Each event changes the table and moves the
checkpoint in one statement, which does nothing unless the checkpoint is where the projector believed it: so whoever
projects, an event takes effect once. One server of all runs a projector, under a lease, and another one takes it over;
besides, who has just appended an event projects it at once, to read its own write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import asyncpg
import structlog

from ..core.audit import of_types
from ..core.event import Event
from ..core.position import NOTHING, Position
from ..errors import OrisunError
from ..storage.catalog import Boundary
from ..storage.database import Database
from ..storage.leases import Lease, Leases
from ..storage.names import quote
from ..storage.reads import Reader
from ..tasks import end, happens

#: Kind of the leases; their boundary is the admin boundary, their name the projection's.
KIND = "projector"
_BLOCK, _BLOCK_BYTES = 1_000, 8 * 1024 * 1024
#: Seconds between two attempts to get the lease, and between two looks without being woken.
_RETRY, _POLL = 1.5, 1.0

_log = structlog.get_logger(__name__)


class Projection(NamedTuple):
    """What a projector does."""

    #: As in ``{boundary}_projector_checkpoint``.
    name: str
    #: Contract.md has these two messages.
    started: str
    not_started: str
    #: Event type -> statement that takes the event from the row ``d`` (``data`` jsonb, ``at`` timestamptz) and has
    #: ``{schema}`` for the admin schema.
    changes: Mapping[str, str]


_STEP = """
WITH moved AS (
    UPDATE {checkpoints} SET commit_position = $1, prepare_position = $2, updated_at = clock_timestamp()
    WHERE name = $3 AND prepare_position = $4 RETURNING name
),
d AS (SELECT $5::jsonb AS data, $6::timestamptz AS at FROM moved)
"""
_SKIP = """
UPDATE {checkpoints} SET commit_position = $1, prepare_position = $2, updated_at = clock_timestamp()
WHERE name = $3 AND prepare_position = $4
"""


class Projector:
    """Keeps one projection up to date, whoever asks for it. Everything raises Unavailable without PostgreSQL."""

    def __init__(self, projection: Projection, database: Database, reader: Reader, boundary: Boundary, schema: str):
        """``boundary`` is the admin boundary; ``schema`` the admin schema's name, unquoted."""
        self.projection = projection
        self._database, self._reader, self._boundary = database, reader, boundary
        self._checkpoints = boundary.names.q_checkpoints
        self._query = of_types(tuple(projection.changes))
        step = _STEP.replace("{checkpoints}", self._checkpoints)
        self._steps = {
            event_type: step + change.replace("{schema}", quote(schema))
            for event_type, change in projection.changes.items()
        }
        self._skip = _SKIP.replace("{checkpoints}", self._checkpoints)

    async def catch_up(self) -> Position:
        """Projects every event that is stored by now; the position that the projection has reached."""
        at = await self._checkpoint()
        while True:
            scan = await self._reader.scan(self._boundary, self._query, at, _BLOCK, _BLOCK_BYTES)
            if scan.at_head and scan.covered == at:
                return at
            before = at
            for event in scan.events:
                await self._apply(event, before)
                before = event.position
            if scan.covered > before:
                await self._execute(self._skip, *scan.covered, self.projection.name, before.prepare)
                before = scan.covered
            reached = await self._checkpoint()
            if reached == before and scan.at_head:
                return reached
            # where another server was faster, or there is more
            at = reached

    async def exists(self) -> bool:
        """Whether it ever ran."""
        return await self._stored() is not None

    async def _checkpoint(self) -> Position:
        stored = await self._stored()
        if stored is None:
            await self._execute(
                f"INSERT INTO {self._checkpoints} (name) VALUES ($1) ON CONFLICT (name) DO NOTHING",
                self.projection.name,
            )
        return stored or NOTHING

    async def _stored(self) -> Position | None:
        with self._database.guard():
            row = await self._database.admin.fetchrow(
                f"SELECT commit_position, prepare_position FROM {self._checkpoints} WHERE name = $1",
                self.projection.name,
            )
        return Position(*row) if row is not None else None

    async def _apply(self, event: Event, before: Position) -> None:
        moves = (*event.position, self.projection.name, before.prepare)
        try:
            await self._execute(self._steps[event.event_type], *moves, event.data, event.date_created)
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as problem:
            # somebody wrote it by hand; the projection must not stand still for it
            _log.error(
                "an event cannot be projected and is left out",
                projection=self.projection.name, position=event.position, sqlstate=problem.sqlstate,
            )  # fmt: skip
            await self._execute(self._skip, *moves)

    async def _execute(self, statement: str, *arguments: object) -> None:
        with self._database.guard():
            await self._database.admin.execute(statement, *arguments)


class RunningProjection:
    """Runs a projection on one server of all: takes the lease, works while it holds, and hands it over.

    ``work`` brings the projection up to date; it is called when ``wake`` was, and every ``poll`` seconds, with
    ``pause`` seconds in between at least.
    """

    def __init__(
        self, name: str, boundary: str, leases: Leases, work: Callable[[], Awaitable[object]],
        *, started: str, not_started: str, pause: float = 0.0, poll: float = _POLL,
    ) -> None:  # fmt: skip
        self._key = (KIND, boundary, name)
        self._leases, self._work, self._pause, self._poll = leases, work, pause, poll
        self._started, self._not_started = started, not_started
        self._woken = asyncio.Event()
        self._said = False
        self._task: asyncio.Task[None] | None = None
        #: Whether it runs here.
        self.active = False

    def wake(self) -> None:
        """There is something to project."""
        self._woken.set()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"projection:{self._key[2]}")

    async def stop(self) -> None:
        if self._task is not None:
            await end([self._task])

    async def _run(self) -> None:
        while True:
            try:
                lease = await self._leases.acquire(*self._key)
            except Exception as problem:  # the next attempt follows, whatever happens
                if not isinstance(problem, OrisunError):
                    _log.warning("a lease cannot be asked for", projection=self._key[2], reason=type(problem).__name__)
                lease = None
            if lease is None:
                self._say_not_started()
                await asyncio.sleep(_RETRY)
                continue
            try:
                self.active = True
                _log.info(self._started)
                await self._project(lease)
            finally:
                self.active = self._said = False
                await lease.release()

    async def _project(self, lease: Lease) -> None:
        failing = False
        while lease.valid:
            self._woken.clear()
            try:
                await self._work()
                failing = False
            except Exception as problem:  # the projection goes on, whatever happens
                if not failing:
                    reason = str(problem) if isinstance(problem, OrisunError) else type(problem).__name__
                    _log.warning("a projection cannot go on now", projection=self._key[2], reason=reason)
                failing = True
            await asyncio.sleep(self._pause)
            await happens(self._woken, self._poll)

    def _say_not_started(self) -> None:
        if not self._said:
            self._said = True
            _log.info(self._not_started)
