"""Group commit: concurrent appends of one boundary share a flush, and each gets its own answer.

A flush is one autocommitted statement, so a stopped server never holds the boundary's lock. No timer delays a lone
call: it is flushed at once, and what arrives meanwhile makes the next group (on grpcio, half of the callers make it:
``gathering``). The answers of a group equal those of its
calls executed one after the other, in the order of arrival.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from ..core.append import Context, checked_command, checked_events
from ..core.event import Command, NewEvent
from ..core.position import Position
from ..errors import ResourceExhausted, Unavailable
from ..observation import Watch
from .catalog import Boundary
from .database import Database
from .gathering import Gathering
from .kept import KeptConnections
from .lane import Call, Lane, ReadyIndexes
from .survey import Survey


class Appender:
    """Appends events to boundaries; at most ``queue_calls`` calls and ``queue_bytes`` bytes wait at a time."""

    def __init__(
        self,
        database: Database,
        indexes: ReadyIndexes,
        *,
        max_events: int = 10_000,
        queue_calls: int = 20_000,
        queue_bytes: int = 256 * 1024 * 1024,
        watch: Watch | None = None,
        gather: bool = False,
    ) -> None:
        """``gather``: the transport hands calls over one at a time (see ``gathering``)."""
        self._database, self._indexes = database, indexes
        self._watch, self._gather = watch or Watch(), gather
        self._connections = KeptConnections(database.write)
        self._survey = Survey(database)
        self._max_events, self._queue_calls, self._queue_bytes = max_events, queue_calls, queue_bytes
        self._calls = self._bytes = 0
        self._answered_at = float("-inf")
        self._lanes: dict[str, Lane] = {}
        self._listeners: list[Callable[[str], None]] = []
        self._stopping = False

    def on_commit(self, listener: Callable[[str], None]) -> None:
        """Calls ``listener(boundary name)`` after each flush that appended something."""
        self._listeners.append(listener)

    async def append(
        self,
        boundary: Boundary,
        events: Sequence[NewEvent],
        context: Context | None,
        command: Command | None = None,
    ) -> Position:
        """Appends the events, all or none, and returns the position of the last one; a command is stored with them.

        Raises InvalidArgument (an event breaks a rule), ContextChanged, DuplicateEventId, ResourceExhausted (the queue
        is full), FailedPrecondition (no index serves the context, and looking it up took a minute) or Unavailable
        (PostgreSQL cannot be reached, or was lost while it committed: repeat the call unchanged, a repeat is never
        stored twice).
        """
        checked = checked_events(events, self._max_events)
        if self._stopping:
            raise Unavailable("the server is shutting down; try another one")
        if command is not None:
            command = checked_command(command)
        call = Call(checked, context, asyncio.get_running_loop().create_future(), command)
        if self._calls >= self._queue_calls or self._bytes + call.size > max(self._queue_bytes, call.size):
            raise ResourceExhausted(
                f"{self._calls} appends with {self._bytes} bytes wait already (ORISUN_APPEND_QUEUE_CALLS="
                f"{self._queue_calls}, ORISUN_APPEND_QUEUE_BYTES={self._queue_bytes}); try again later"
            )
        self._calls += 1
        self._bytes += call.size
        try:
            if context is not None and (lane := self._lane(boundary)).long_lookups(context.query):
                call.seen = await self._survey(boundary, context.query, lane.long_lookups)
                if self._stopping:
                    raise Unavailable("the server is shutting down; try another one")
            self._lane(boundary).add(call)
            return await call.answer
        finally:
            self._calls -= 1
            self._bytes -= call.size
            self._answered_at = time.monotonic()

    @property
    def waiting(self) -> tuple[int, int]:
        """Calls that have no answer yet, and their bytes."""
        return self._calls, self._bytes

    @property
    def quiet_for(self) -> float:
        """Seconds since the last call was answered; 0 while any has no answer yet."""
        return 0.0 if self._calls else time.monotonic() - self._answered_at

    async def stop(self) -> None:
        """Refuses new calls and finishes those that were taken."""
        self._stopping = True
        await asyncio.gather(*(lane.drained() for lane in self._lanes.values()))
        await self._connections.stop()

    def _lane(self, boundary: Boundary) -> Lane:
        lane = self._lanes.get(boundary.name)
        if lane is None or lane.boundary != boundary:
            lane = self._lanes[boundary.name] = Lane(
                boundary,
                self._database,
                self._connections,
                self._indexes,
                self._committed,
                watch=self._watch,
                gathering=Gathering() if self._gather else None,
            )
        return lane

    def _committed(self, boundary: str) -> None:
        for listener in self._listeners:
            listener(boundary)
