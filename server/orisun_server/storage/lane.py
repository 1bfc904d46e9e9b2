"""The lane of one boundary: its queue of calls, and the task that flushes them a group at a time.

A conflict or a bad event fails its own call, never its neighbours: a group that PostgreSQL refuses for the content of
one event is committed by halves, until the one is found.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import asyncpg
import structlog

from ..core.append import CheckedEvent, Context
from ..core.criteria import Criterion, Query
from ..core.event import Command
from ..core.position import Position
from ..deadlines import time_left
from ..errors import (
    BoundaryNotActive,
    ContextChanged,
    DuplicateEventId,
    InvalidArgument,
    OrisunError,
    Unavailable,
)
from ..observation import Watch
from ..observation.tracing import current_span
from .catalog import Boundary
from .criteria_sql import Access, Plans
from .database import Database
from .flush import Flush
from .gathering import Gathering
from .index_sql import IndexDefinition
from .kept import KeptConnections
from .survey import Seen
from .turns import Turns

log = structlog.get_logger(__name__)

#: Most events and bytes of one flush; a single call may be larger and then goes alone.
GROUP_EVENTS = 5_000
GROUP_BYTES = 8 * 1024 * 1024

#: A log of so many events is read under the lock where no index serves a criterion; a longer one before (``survey``).
SHORT_LOG = 1_000

#: Memory of a queued call and of each of its events, beside their texts, in bytes, roughly.
_OF_CALL, _OF_EVENT = 650, 350

#: Seconds after which a flush is given up; its outcome is then unknown and a repeat makes it certain.
FLUSH_TIMEOUT = 60.0

_REPEAT = "repeat the call unchanged, it is never stored twice"

_APPENDED, _REPEATED, _CHANGED, _DUPLICATE = range(4)

#: PostgreSQL's objections to one event's content, not to the statement: data, program limits.
_CONTENT_ERRORS = asyncpg.DataError, asyncpg.ProgramLimitExceededError
#: The boundary is being removed, or was: its tables refuse events (managed.CLOSED) or are gone.
_GONE_ERRORS = (
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedTableError,
    asyncpg.InvalidSchemaNameError,
)


class _Unmatched(Exception):
    """An event that cannot be matched within its group (too deep, for one); alone it needs no matching."""


class ReadyIndexes(Protocol):
    """What appending needs to know of indexes."""

    def ready(self, boundary: str) -> tuple[IndexDefinition, ...]:
        """The READY indexes of a boundary, from a cache."""


class Call:
    """One SaveEvents on its way: what to append, under which context, and who waits for the answer."""

    __slots__ = ("answer", "command", "context", "events", "problem", "seen", "size", "span", "time_left")

    def __init__(
        self,
        events: list[CheckedEvent],
        context: Context | None,
        answer: asyncio.Future[Position],
        command: Command | None = None,
    ) -> None:
        self.events, self.context, self.answer, self.command = events, context, answer, command
        self.span = current_span()
        self.time_left = time_left.get()
        #: Why it failed, also while its caller is not told yet.
        self.problem: Exception | None = None
        #: What was looked up of the context's criteria before.
        self.seen: Mapping[Criterion, Seen] = {}
        #: Bytes, roughly, that it takes, and that its data takes as it is printed where the group is matched.
        self.size = _OF_CALL + sum([_OF_EVENT + sum(map(len, event)) + growth for event, growth in events])
        if command is not None:
            self.size += sum(map(len, command))

    def resolve(self, position: Position) -> None:
        if not self.answer.done():
            self.answer.set_result(position)

    def fail(self, error: Exception, after: float = 0.0) -> None:
        """``after``: its caller is told in so many seconds, or halfway to its deadline."""
        self.problem = error
        if after and (left := self.time_left()) is not None:
            after = min(after, left / 2)
        if after:
            self.answer.get_loop().call_later(after, self.fail, error)
        elif not self.answer.done():
            self.answer.set_exception(error)


class Lane:
    """The queue of one boundary and the task that flushes it, which lives while there is something to flush."""

    def __init__(
        self,
        boundary: Boundary,
        database: Database,
        connections: KeptConnections,
        indexes: ReadyIndexes,
        committed: Callable[[str], None],
        *,
        watch: Watch,
        gathering: Gathering | None = None,
    ) -> None:
        self.boundary, self._watch, self._gathering = boundary, watch, gathering
        self._database, self._connections = database, connections
        self._indexes, self._committed = indexes, committed
        self._plans = Plans(())
        self._head = SHORT_LOG  # at least; how long the log is shows at the first flush
        self._queue: deque[Call] = deque()
        self._task: asyncio.Task[None] | None = None
        self._turns = Turns()
        #: Whether more waited than went into the last group.
        self._was_full = False

    def add(self, call: Call) -> None:
        self._queue.append(call)
        if self._gathering is not None:
            self._gathering.came(len(self._queue))
        self._start()

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"append:{self.boundary.name}")

    def long_lookups(self, query: Query) -> list[tuple[Criterion, Access]]:
        """The criteria for which much may have to be read: no index serves them, and the log is not short."""
        if self._head < SHORT_LOG:
            return []
        plans = self._current_plans()
        accesses = ((criterion, plans.access(criterion)) for criterion in query if criterion)
        return [(criterion, plan) for criterion, plan in accesses if not plan.indexed]

    def _current_plans(self) -> Plans:
        indexes = self._indexes.ready(self.boundary.name)
        if indexes is not self._plans.indexes:
            self._plans = Plans(indexes)
        return self._plans

    async def drained(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        group: list[Call] = []
        try:
            while group := self._take():
                began = time.monotonic()
                await self._commit(group)
                if self._gathering is not None:
                    most = len(group) if self._was_full else None
                    await self._gathering.wait(self._queue, time.monotonic() - began, most)
        finally:
            self._task = None
            # only after an unforeseen error is anything left here
            self._fail(group, Unavailable(f"the append was interrupted; {_REPEAT}"))
            if self._queue:
                self._start()

    def _take(self) -> list[Call]:
        """The next group: as much of the queue as fits, up to the first call that repeats an event id of the group."""
        group: list[Call] = []
        ids: set[str] = set()
        events = size = 0
        self._was_full = False
        queue = self._queue
        while queue:
            call = queue[0]
            if call.answer.done():  # its caller left
                queue.popleft()
                continue
            events += len(call.events)
            size += call.size
            if group and (events > GROUP_EVENTS or size > GROUP_BYTES):
                self._was_full = True
                break
            own = {checked.event.event_id for checked in call.events}
            if not ids.isdisjoint(own):
                break
            ids |= own
            group.append(queue.popleft())
        return group

    async def _commit(self, group: list[Call]) -> None:
        try:
            with self._watch.flush(self.boundary.name, group, self._is_indexed):
                await self._flush(group)
        except (*_CONTENT_ERRORS, _Unmatched) as problem:
            if len(group) == 1:
                group[0].fail(await self._diagnose(group[0], problem))
            else:
                # One of them cannot be stored: found by halves, so that the others go on sharing commits.
                for half in (group[: len(group) // 2], group[len(group) // 2 :]):
                    if staying := [call for call in half if not call.answer.done()]:
                        await self._commit(staying)
        except _GONE_ERRORS:
            self._fail(group, BoundaryNotActive(self.boundary.name))
        except Unavailable as problem:
            self._fail(group, Unavailable(f"{problem.public}; {_REPEAT}"))
        except Exception:
            log.exception("append failed", boundary=self.boundary.name, calls=len(group))
            self._fail(group, OrisunError("the events could not be stored; the server's log says more"))

    async def _flush(self, group: list[Call]) -> None:
        flush = Flush(self.boundary, self._current_plans())
        for call in group:
            flush.add(call.events, call.context, call.command, call.seen)
        try:
            arguments = flush.arguments()
        except Exception as problem:
            if len(group) == 1:
                raise
            raise _Unmatched from problem
        began = time.monotonic()
        with self._database.guard():
            connection = await self._connections.take()
            sound = False
            try:
                row = await connection.fetchrow(flush.statement, *arguments, timeout=FLUSH_TIMEOUT)
                sound = True
            finally:
                self._connections.give_back(connection, sound=sound)
        base, status, commits, prepares = row
        self._head = base
        if status is None:
            for call, last in zip(group, flush.last_of_call(), strict=True):
                call.resolve(Position(base + last, base + last - 1))
            self._committed(self.boundary.name)
            return
        now = time.monotonic()
        lost = [
            call.context.query for call, code in zip(group, status, strict=True) if code == _CHANGED and call.context
        ]
        turns = iter(self._turns.take(lost, now, now - began))
        for call, code, commit, prepare in zip(group, status, commits, prepares, strict=True):
            if code in (_APPENDED, _REPEATED):
                call.resolve(Position(commit, prepare))
            elif code == _CHANGED and call.context:
                call.fail(ContextChanged(call.context.expected, (commit, prepare)), next(turns))
            else:
                call.fail(DuplicateEventId(prepare, call.events[prepare].event.event_id))
        if _APPENDED in status:
            self._committed(self.boundary.name)

    async def _diagnose(self, call: Call, problem: Exception) -> Exception:
        """Which event PostgreSQL cannot store; asked one field at a time."""
        try:
            with self._database.guard():
                for number, field, text in _fields(call):
                    try:
                        await self._database.write.fetchval("SELECT $1::text::jsonb IS NULL", text)
                    except _CONTENT_ERRORS as found:
                        what, place = ("command", "") if number is None else ("event", f"event {number} ")
                        return InvalidArgument(f"invalid {what} JSON: {place}{field}: {_reason(found)}")
        except Unavailable as failure:
            return failure
        return InvalidArgument(f"invalid event JSON: PostgreSQL cannot store an event of this call: {_reason(problem)}")

    def _is_indexed(self, criterion: Criterion) -> bool:
        return self._plans.access(criterion).indexed

    @staticmethod
    def _fail(group: list[Call], error: Exception) -> None:
        for call in group:
            call.fail(error)


def _fields(call: Call) -> Iterator[tuple[int | None, str, str]]:
    for number, checked in enumerate(call.events):
        yield number, "data", checked.event.data
        yield number, "metadata", checked.event.metadata
    if call.command is not None:
        yield None, "data", call.command.data
        yield None, "metadata", call.command.metadata


def _reason(problem: BaseException) -> str:
    """What PostgreSQL objected to, without the detail and context that would quote the payload."""
    state = getattr(problem, "sqlstate", "")
    return {
        "22003": "a number is out of PostgreSQL's range",
        "22P05": "a character cannot be stored",
        "54001": "nested too deeply",
    }.get(state, f"PostgreSQL refuses it (SQLSTATE {state})")
