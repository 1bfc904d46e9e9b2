"""The processor: follows a boundary and hands its events to a projection, batch by batch.

It is woken by the subscription and polls nothing. A batch is what is there, at most ``batch_size`` events: one when the
projection keeps up, many while it catches up.
"""

from __future__ import annotations

import asyncio
import datetime
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ..boundary import Boundary
from ..codecs import EventTypes
from ..errors import SubscriberInUse
from ..events import Event
from ..position import NOTHING, Position
from ..subscription import Subscription
from .checkpoints import Assignment, Batch, Checkpoints
from .config import BatchReport, ProcessorConfig
from .errors import Fenced, ProjectionStopped, is_passing, reason_of
from .postgres import PostgresCheckpoints, strategies
from .projection import Projection

#: Events passed over after which the checkpoint is moved although nothing was handled.
_SKIPPED = 1_000
#: Seconds until a worker that stands by asks again whether the partition is free, at first and at most.
_STANDBY, _LONGEST_STANDBY = 0.2, 3.0


class _Undecoded(EventTypes):
    """Leaves payloads alone, so that one that cannot be decoded is an event to park and not the end of the stream."""

    def decode(self, event_type: str, data: str, metadata: Any) -> Any:
        return None


@dataclass
class Stats:
    """What a processor has done since it was started."""

    handled: int = 0
    skipped: int = 0
    parked: int = 0
    batches: int = 0
    retries: int = 0
    #: Another worker has the partition.
    standby: bool = False
    #: The last event that is in the read model or was passed over.
    position: Position = NOTHING
    #: Seconds between storing and handling of the last event.
    age: float = 0.0


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a partition is behind."""

    #: At most so many events are waiting (numbers of the boundary, whatever the query).
    events: int
    #: Seconds since the oldest of them was stored.
    seconds: float


class Processor:
    """One worker of a projection.

    ``checkpoints`` is an asyncpg pool of the read model's PostgreSQL (exactly once), or ``FileCheckpoints`` or
    ``PostgresCheckpoints``. ``run`` works until ``stop`` is called, or the task is cancelled; both are safe at any time.
    """

    def __init__(self, checkpoints: Any, boundary: Boundary, config: ProcessorConfig | None = None) -> None:
        self.checkpoints: Checkpoints = (
            checkpoints if hasattr(checkpoints, "assign") else PostgresCheckpoints(checkpoints)
        )
        self.boundary, self.config = boundary, config or ProcessorConfig()
        self.stats = Stats()
        self._stop = asyncio.Event()
        self._strategies = {one.name: one for one in strategies(self.config)}
        self._unsaved = 0
        self._caught_up: asyncio.Event | None = None

    def stop(self) -> None:
        """Finish the batch in hand, keep its checkpoint, and return from ``run``."""
        self._stop.set()

    async def run(self, projection: Projection) -> None:
        """Project until ``stop``.

        Raises:
            ProjectionStopped: an event cannot be handled (see ``PoisonPolicy``).
            PartitionMismatch, VersionMismatch: the checkpoints are another layout's or version's.
            OutOfRange: the checkpoint lies beyond the boundary's last event, which comes from another history.
            Unavailable, Unauthenticated, ...: no server was reached at the start, or it refuses.
        """
        log, pause = self.config.logger, _STANDBY
        while not self._stop.is_set():
            try:
                assignment = await self._assigned(projection)
                if assignment is None:
                    return
                await self._follow(assignment)
            except Fenced as reason:
                if log:
                    log.info("checkpoint moved", **self._names(projection), reason=str(reason))
                await self._pause(_STANDBY * random.random())  # noqa: S311 - no secret
            except SubscriberInUse:
                if log and not self.stats.standby:
                    log.info("standing by: another worker has the partition", **self._names(projection))
                self.stats.standby = True
                await self._pause(pause * (0.5 + random.random() / 2))  # noqa: S311
                pause = min(pause * 2, _LONGEST_STANDBY)

    async def lag(self, projection: Projection) -> Lag:
        """How far behind the worker is; two reads."""
        after = self.stats.position
        async for waiting in self._raw().read(projection.query, after=_after(after), limit=1):
            async for last in self._raw().read(projection.query, descending=True, limit=1):
                now = datetime.datetime.now(datetime.UTC)
                events = last.position.prepare - waiting.position.prepare + 1
                return Lag(max(events, 1), max((now - waiting.created_at).total_seconds(), 0.0))
        return Lag(0, 0.0)

    # -- following -----------------------------------------------------------------------------------------------

    async def _assigned(self, projection: Projection) -> Assignment | None:
        """The worker's partition; None when it is to stop. A database that is away is waited for."""
        attempts = 0
        while not self._stop.is_set():
            try:
                return await self.checkpoints.assign(projection, self.boundary.name, self.config)
            except Exception as error:
                if not (is_passing(error) or isinstance(error, ConnectionError)):
                    raise
                attempts += 1
                await self._waited(projection, error, attempts)
        return None

    async def _follow(self, assignment: Assignment) -> None:
        projection, log = assignment.projection, self.config.logger
        self.stats.position, self._unsaved = assignment.position, 0
        async with self._subscription(assignment) as subscription:
            if log:
                log.info("projection started", **self._names(projection), position=str(assignment.position))
            batch: asyncio.Task[list[Event]] | None = None
            stopping = asyncio.create_task(self._stop.wait())
            try:
                while not self._stop.is_set():
                    batch = asyncio.create_task(subscription.batch(self.config.batch_size))
                    await asyncio.wait((batch, stopping), return_when=asyncio.FIRST_COMPLETED)
                    if not batch.done():
                        break
                    self.stats.standby = False
                    events = await batch
                    batch = None
                    await self._process(assignment, events)
                if self._unsaved:
                    await self._transact(assignment, [], self.stats.position)
            finally:
                stopping.cancel()
                if batch is not None:
                    batch.cancel()
        if log:
            log.info("projection stopped", **self._names(projection), position=str(self.stats.position))

    @asynccontextmanager
    async def _subscription(self, assignment: Assignment) -> AsyncIterator[Subscription]:
        client = self.boundary.client
        subscription = Subscription(
            client.calls,
            _Undecoded(),
            boundary=self.boundary.name,
            name=f"projection {assignment.projection.name} {assignment.partition}/{assignment.total}",
            query=assignment.projection.query,
            after=_after(assignment.position),
        )
        client.streams.add(subscription)
        async with subscription:
            yield subscription

    def _raw(self) -> Boundary:
        return _undecoded(self.boundary)

    # -- one batch -----------------------------------------------------------------------------------------------

    async def _process(self, assignment: Assignment, events: Sequence[Event]) -> None:
        mine = [pair for pair in map(lambda event: self._keyed(assignment, event), events) if pair is not None]
        last = events[-1].position
        self.stats.skipped += len(events) - len(mine)
        self.stats.age = (datetime.datetime.now(datetime.UTC) - events[-1].created_at).total_seconds()
        if not mine:
            # another partition's events move the checkpoint now and then
            self._unsaved += len(events)
            if self._unsaved >= _SKIPPED:
                await self._transact(assignment, [], last)
            else:
                self._moved(last)
            return
        try:
            await self._until_possible(assignment, mine, last, len(events) - len(mine))
        except _HandlerError:
            # one of them cannot be handled: each by itself, so that the others are
            for number, pair in enumerate(mine):
                end = last if number == len(mine) - 1 else pair[1].position
                await self._alone(assignment, pair, end)

    def _keyed(self, assignment: Assignment, event: Event) -> tuple[str | None, Event] | None:
        """The event with its key; None when it is another partition's, or was done under an earlier layout."""
        undecoded = event
        try:
            key = assignment.projection.key_of(undecoded)
        except Exception:
            key = None  # told as poison by partition 0, where handle most likely fails too
        if assignment.total > 1 and self.config.strategy.partition(key, assignment.total) != assignment.partition:
            return None
        if any(layout.covers(key, event.position, self._strategies) for layout in assignment.history):
            return None
        return key, event

    async def _until_possible(
        self, assignment: Assignment, mine: Sequence[tuple[str | None, Event]], last: Position, skipped: int = 0
    ) -> None:
        """Handle them in one transaction, again while the database is away. Raises _HandlerError."""
        attempts = 0
        while True:
            try:
                await self._transact(assignment, mine, last, skipped=skipped)
                return
            except (Fenced, _HandlerError):
                raise
            except Exception as error:
                if not (is_passing(error) or isinstance(error, ConnectionError)):
                    raise _HandlerError(error) from error
                attempts += 1
                if not await self._waited(assignment.projection, error, attempts):
                    raise Fenced("the worker was stopped while it waited for the database") from None

    async def _alone(self, assignment: Assignment, pair: tuple[str | None, Event], end: Position) -> None:
        """One event in a transaction of its own, and what the policy says when that fails."""
        policy, event, attempts = self.config.poison, pair[1], 0
        while True:
            try:
                await self._until_possible(assignment, [pair], end)
                return
            except _HandlerError as failed:
                error = failed.error
            attempts += 1
            self.stats.retries += 1
            reason = reason_of(error)
            if log := self.config.logger:
                names = self._names(assignment.projection) | {"event_id": event.event_id, "event_type": event.event_type}
                log.error("event not handled", **names, position=str(event.position), attempts=attempts, reason=reason)
            if attempts >= policy.attempts and policy.then == "stop":
                raise ProjectionStopped(
                    assignment.projection.name, event.event_id, event.position, attempts, reason
                ) from error
            if attempts >= policy.attempts and policy.then == "park":
                await self._transact(assignment, [pair], end, parked=(reason, attempts))
                return
            await self._pause(policy.pause(attempts))
            if self._stop.is_set():
                raise Fenced("the worker was stopped while it waited to try again")

    async def _transact(
        self,
        assignment: Assignment,
        mine: Sequence[tuple[str | None, Event]],
        last: Position,
        *,
        skipped: int = 0,
        parked: tuple[str, int] | None = None,
    ) -> None:
        """One transaction: these events, or their parking, and the checkpoint."""
        projection, began, handled = assignment.projection, time.monotonic(), 0
        async with self.checkpoints.batch(assignment, self._kept_position(assignment)) as batch:
            for key, event in mine:
                if parked is not None:
                    await batch.park(event, key, reason=parked[0], attempts=parked[1])
                elif self.config.poison.hold and key is not None and key in batch.parked_keys:
                    await batch.park(event, key, reason="waits behind a parked event of its key", attempts=0)
                else:
                    await self._handle(projection, batch, event)
                    handled += 1
            await batch.advance(last, handled)
        self.stats.handled += handled
        self.stats.parked += len(mine) - handled
        self.stats.batches += 1
        self._unsaved = 0
        self._saved = last
        self._moved(last)
        self._report(assignment, handled, skipped, len(mine) - handled, time.monotonic() - began)

    async def _handle(self, projection: Projection, batch: Batch, event: Event) -> None:
        try:
            data = self.boundary.client.types.decode(event.event_type, event.raw_data, event.metadata)
            await projection.handle(batch.tx, replace(event, data=data))
        except Exception as error:
            if is_passing(error):
                raise
            raise _HandlerError(error) from error

    # -- small things --------------------------------------------------------------------------------------------

    _saved: Position | None = field(default=None, init=False)

    def _kept_position(self, assignment: Assignment) -> Position:
        """Where the checkpoint is kept; ``stats.position`` may have moved past it over events of others."""
        return self._saved if self._saved is not None else assignment.position

    def _moved(self, position: Position) -> None:
        self.stats.position = position

    def _report(self, assignment: Assignment, handled: int, skipped: int, parked: int, seconds: float) -> None:
        position, names = self.stats.position, self._names(assignment.projection)
        if log := self.config.logger:
            log.debug("batch committed", **names, handled=handled, parked=parked, position=str(position))
        if self.config.on_batch is not None:
            report = BatchReport(
                names["projection"], names["partition"], handled, skipped, parked, seconds, position, self.stats.age
            )
            self.config.on_batch(report)

    async def _waited(self, projection: Projection, error: BaseException, attempts: int) -> bool:
        """Wait before asking the database again; whether to go on."""
        if log := self.config.logger:
            log.error("database away", **self._names(projection), attempts=attempts, reason=reason_of(error))
        await self._pause(min(0.05 * 2 ** min(attempts, 10), 5.0))
        return not self._stop.is_set()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass

    def _names(self, projection: Projection) -> dict[str, Any]:
        return {"projection": projection.name, "partition": self.config.partition_key}


class _HandlerError(Exception):
    """What ``handle`` raised, told from what the database raises around it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(type(error).__name__)
        self.error = error


def _undecoded(boundary: Boundary) -> Boundary:
    made = Boundary(boundary.client, boundary.name)
    made._types = _Undecoded()
    return made


def _after(position: Position) -> Position | None:
    return position if position > NOTHING else None
