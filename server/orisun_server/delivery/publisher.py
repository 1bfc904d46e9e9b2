"""The one publisher of a boundary: everything after the checkpoint, in position order, into the boundary's stream.

It works under a lease. Three things keep a publisher that lost its lease from doing harm: it asks the lease before each
batch (by its own clock), every message demands the sequence before it, and the checkpoint demands the lease's epoch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import asyncpg
import structlog

from ..core.criteria import WHOLE_BOUNDARY
from ..core.event import Event
from ..core.position import NOTHING, Position
from ..errors import OrisunError
from ..observation import Watch
from ..settings import Settings
from ..storage.catalog import Boundary
from ..storage.database import Database
from ..storage.leases import Lease
from ..storage.reads import Reader, Scan
from ..tasks import end, happens
from .checkpoint import Checkpoint, Checkpoints
from .lookout import Lookout
from .nats import NATS_ERRORS, Nats
from .signals import Signals
from .stream import EventStream, NotTheNextMessage, message_id

log = structlog.get_logger(__name__)

#: Bytes of a batch. While one is sent the next is read, for each boundary that is behind: after an hour without NATS
#: that is all of them.
BATCH_BYTES = 1024 * 1024

#: Seconds between two stores of the checkpoint while events flow.
CHECKPOINT_INTERVAL = 0.1

#: Seconds of rest after which a publisher that hears no signals looks first; then twice as long, and so on.
_FIRST_POLL = 0.05
#: Seconds of rest between two questions whether the stream has all its copies.
_REST_CHECK = 5.0
#: Seconds for which PostgreSQL is believed to hold what it held: it may be replaced by a copy that lacks the latest
#: events, and give their positions to others.
CONFIRMED = 0.5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0

#: Times in a row that a stream may refuse to go on before it is made anew.
_REFUSALS = 5


class Fenced(OrisunError):
    """Another publisher has the boundary."""


class HistoryChanged(OrisunError):
    """PostgreSQL does not hold the event any more that was published last."""


#: While somebody appends, a publisher that is not behind rests this many times as long as its last batch took, within
#: bounds in seconds: appends go first, and what they add meanwhile shares the cost of one batch. On a busy server
#: batches take longer.
_REST, _LEAST_REST, _LONGEST_REST = 3.0, 0.002, 0.05
#: Seconds without an append after which there is nobody to rest for; who appends without a pause is back sooner. (Also
#: the shortest time that uvloop sleeps.)
_QUIET = 0.001


class Publisher:
    """Publishes a boundary for as long as its lease holds; ``run`` returns after ``stop`` or when the lease is lost."""

    def __init__(
        self,
        boundary: Boundary,
        lease: Lease,
        *,
        reader: Reader,
        nats: Nats,
        database: Database,
        lookout: Lookout,
        signals: Signals,
        settings: Settings,
        quiet_for: Callable[[], float],
        watch: Watch | None = None,
    ) -> None:
        """``quiet_for()``: seconds for which its server has appended nothing."""
        self.boundary, self.lease, self._watch = boundary, lease, watch or Watch()
        self._reader, self._nats, self._settings = reader, nats, settings
        self._lookout, self._signals, self._quiet_for = lookout, signals, quiet_for
        self._checkpoints = Checkpoints(database, boundary, lease.epoch)
        self._at = self._stored = Checkpoint(NOTHING, 0)
        self._stored_at = 0.0
        self._last_event_id: str | None = None
        self._history_changed = False
        self._confirmed_at = 0.0
        self._refusals = 0
        self._rest_until = self._woken_at = 0.0
        self._wake = asyncio.Event()
        self._stopping = False

    @property
    def position(self) -> Position:
        """The last published event's."""
        return self._at.position

    def wake(self) -> None:
        """Look for new events now."""
        self._woken_at = time.monotonic()
        self._wake.set()

    def saw(self, position: Position, event_id: str | None, head: Position) -> None:
        """What the lookout found at a position where this publisher was."""
        if position != self._at.position:
            return
        self._history_changed = event_id != self._last_event_id
        if self._history_changed or head > position:
            self._wake.set()

    def failed(self) -> None:
        """The next scan tells why the lookout sees nothing."""
        self._wake.set()

    def stop(self) -> None:
        """Finish the batch, store the checkpoint, return."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        pause = _FIRST_PAUSE
        while self._may_go_on():
            try:
                stream = await self._take_over()
                pause = _FIRST_PAUSE
                await self._follow(stream)
            except Fenced:
                return
            except (*NATS_ERRORS, NotTheNextMessage, HistoryChanged) as problem:
                self._refusals += isinstance(problem, NotTheNextMessage)
                if self._nats.connected and pause == _FIRST_PAUSE:
                    reason = str(problem) or type(problem).__name__
                    log.info("publishing was interrupted", boundary=self.boundary.name, reason=reason)
            except (OrisunError, asyncpg.PostgresError):
                log.exception("publishing failed; it starts over", boundary=self.boundary.name)
            if self._may_go_on():
                self._wake.clear()
                await happens(self._wake, pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
        with contextlib.suppress(OrisunError):
            await self._store()

    def _may_go_on(self) -> bool:
        return self.lease.valid and not self._stopping

    async def _take_over(self) -> EventStream:
        """Finds where to go on: after the stream's last message if PostgreSQL holds it, else after the checkpoint.

        A stream that ends with an event that PostgreSQL does not hold is of another history (PostgreSQL was restored to
        an earlier point) and is made anew, and so is one that keeps refusing the next message.
        """
        connection = self._nats.connection
        at = await self._checkpoints.claim()
        if at is None:
            raise Fenced
        stream = EventStream(connection, self.boundary.name, self._settings)
        last = await stream.open()
        rebuild = self._refusals >= _REFUSALS
        _, head = await self._reader.look(self.boundary, at.position)
        if at.position > head:
            at = await self._checkpoints.at(head, Checkpoint(NOTHING, 0))
            rebuild = True
        if last is not None and not rebuild:
            event_id = last.position and (await self._reader.look(self.boundary, last.position))[0]
            if not (last.position and event_id and last.message_id == message_id(last.position.prepare, event_id)):
                rebuild = True
            elif last.position > at.position:
                at = await self._checkpoints.at(last.position, at)
        if rebuild:
            log.warning("the stream is not of PostgreSQL's history and is made anew", boundary=self.boundary.name)
            if not self.lease.valid:
                raise Fenced
            await stream.delete()
            await stream.open()
            self._refusals = 0
        self._at, self._last_event_id = at, (await self._reader.look(self.boundary, at.position))[0]
        self._history_changed, self._confirmed_at = False, time.monotonic()
        return stream

    async def _follow(self, stream: EventStream) -> None:
        ahead: asyncio.Task[Scan] | None = None
        self._lookout.add(self)
        try:
            while self._may_go_on():
                if ahead is None:
                    await self._rest()
                    self._wake.clear()
                began = time.monotonic()
                await self._confirm(began)
                found = await (ahead or self._scan(self._at.position))
                # the next batch is read while this one is published
                ahead = None if found.at_head else asyncio.create_task(self._scan(found.covered))
                if found.events:
                    await self._publish(stream, found.events)
                    now = time.monotonic()
                    self._rest_until = now + min(max(_REST * (now - began), _LEAST_REST), _LONGEST_REST)
                    # in the time of the rest, and not counted in it
                    if now >= self._stored_at + CHECKPOINT_INTERVAL:
                        await self._store()
                await stream.complete()
                if found.at_head:
                    await self._idle(stream)
        finally:
            self._lookout.remove(self)
            if ahead is not None:
                await end([ahead])

    async def _confirm(self, now: float) -> None:
        if now > self._confirmed_at + CONFIRMED:
            event_id, _ = await self._reader.look(self.boundary, self._at.position)
            if event_id != self._last_event_id:
                raise HistoryChanged
        self._confirmed_at = now

    async def _rest(self) -> None:
        """Until the rest is over, or neither this server nor another one, whose signals wake this one, appends."""
        await asyncio.sleep(0)
        while (left := self._rest_until - (now := time.monotonic())) > 0:
            if min(self._quiet_for(), now - self._woken_at) >= _QUIET:
                return
            await asyncio.sleep(_QUIET if left < 10 * _QUIET else 5 * _QUIET)

    async def _scan(self, after: Position) -> Scan:
        size = self._settings.polling_publisher_batch_size
        return await self._reader.scan(self.boundary, WHOLE_BOUNDARY, after, size, BATCH_BYTES)

    async def _publish(self, stream: EventStream, events: list[Event]) -> None:
        if not self.lease.valid:
            raise Fenced
        last = events[-1]
        with self._watch.publish(self.boundary.name, events) as watched:
            await stream.publish(events, self._at.position, watched.origins)
        self._at = Checkpoint(last.position, self._at.events + len(events))
        self._last_event_id = last.event_id
        self._refusals = 0

    async def _store(self) -> None:
        if self._stored != self._at:
            at = self._at
            if not await self._checkpoints.store(at):
                raise Fenced
            self._stored, self._stored_at = at, time.monotonic()

    async def _idle(self, stream: EventStream) -> None:
        """Waits until there may be something to publish: woken by whoever appended, or by the lookout."""
        poll = _FIRST_POLL
        while self._may_go_on() and not self._wake.is_set():
            if self._stored != self._at:
                if not await happens(self._wake, self._stored_at + CHECKPOINT_INTERVAL - time.monotonic()):
                    await self._store()
            elif poll < self._settings.publisher_poll_interval and not self._signals.heard:
                if not await happens(self._wake, poll):
                    at = self._at.position
                    self.saw(at, *await self._reader.look(self.boundary, at))
                poll *= 2
            else:
                await stream.complete()
                await happens(self._wake, _REST_CHECK)
        if self._history_changed:
            raise HistoryChanged
