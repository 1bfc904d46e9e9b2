"""The processor: follows a boundary and hands its events to a projection, batch by batch.

It is woken by the subscription and asks the store for nothing meanwhile; now and then it looks whether its checkpoint
is still its own. A batch is what is there, at most ``batch_size`` events: one when the projection keeps up, many while
it catches up.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..boundary import Boundary
from ..codecs import EventTypes
from ..errors import ClientClosed, SubscriberInUse, Unavailable
from ..events import Event
from ..position import NOTHING, Position
from ..subscription import Subscription
from .batches import SAVE_AFTER, Stats, Stopped, Worker, tell_away
from .checkpoints import Assignment, Checkpoints
from .config import ProcessorConfig
from .errors import Fenced, ProjectionError, is_passing
from .postgres import PostgresCheckpoints
from .projection import Projection, check_name

#: Seconds until a worker that stands by asks again whether the partition is free, at first and at most.
_STANDBY, _LONGEST_STANDBY = 0.2, 3.0
_LONGEST_WAIT = 5.0
#: Seconds without an event after which a worker looks whether its checkpoint is still its own.
_LOOK_AFTER = 2.0


class Undecoded(EventTypes):
    """Leaves payloads alone, so that one that cannot be decoded is an event to park and not the end of the stream."""

    def decode(self, event_type: str, data: str, metadata: Mapping[str, Any]) -> Any:
        return None


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a worker is behind."""

    #: At most so many events are waiting (numbers of the boundary, whatever the query).
    events: int
    #: Seconds since the oldest of them was stored.
    seconds: float


class Processor:
    """One worker of a projection.

    ``checkpoints`` is an asyncpg pool of the read model's PostgreSQL (exactly once), a ``PostgresCheckpoints``, or a
    ``FileCheckpoints`` (at least once). Several workers of one partition do no harm: one works, the others stand by.
    """

    def __init__(self, checkpoints: Any, boundary: Boundary, config: ProcessorConfig | None = None) -> None:
        is_ready = hasattr(checkpoints, "assign")
        self.checkpoints: Checkpoints = checkpoints if is_ready else PostgresCheckpoints(checkpoints)
        self.boundary, self.config = boundary, config or ProcessorConfig()
        self.stats = Stats()
        self._stop = asyncio.Event()
        self._moved = asyncio.Event()
        #: Set when the worker that waits for events has something else to do.
        self._wake = asyncio.Event()
        self._asking: list[asyncio.Future[None]] = []
        self._ended = self._began = False

    def stop(self) -> None:
        """Finish the batch in hand, keep its checkpoint, and return from ``run``. For good: to go on, make another
        processor."""
        self._stop.set()
        self._wake.set()

    async def run(self, projection: Projection) -> None:
        """Project until ``stop``; cancelling the task is as safe, and leaves the batch in hand to the next start.

        Raises:
            ProjectionStopped: an event cannot be handled (see ``PoisonPolicy``).
            PartitionMismatch, VersionMismatch: the checkpoints are another layout's or version's.
            ClientClosed: the client was closed meanwhile.
            OutOfRange: the checkpoint lies beyond the boundary's last event; the events come from another history.
            Unavailable, Unauthenticated, ...: no server was reached at the start, or it refuses.
        """
        check_name(projection)
        self._ended = False
        try:
            await self._run(projection)
        finally:
            self._ended = True
            self._moved.set()
            self._answer(self._asking)

    async def caught_up(self, projection: Projection, position: Position | None = None) -> None:
        """Wait until the read model holds every event up to ``position``, such as that of an append that was just made
        (None: up to now), so that one reads one's own writes: those of this worker's partition, once it has it (one
        that stands by does not know how far the other is). Raises ProjectionError when ``run`` ends before."""
        target = position
        if target is None or target > self.stats.position:
            target = await last_wanted(self.boundary, projection, position)
        while target > NOTHING:
            while self.stats.position < target:
                if self._ended:
                    raise ProjectionError(f'projection "{projection.name}" ended before it reached {target}')
                self._moved.clear()
                await self._moved.wait()
            # the read model may have been emptied meanwhile, which a worker without events has not seen yet
            await self._looked()
            if self.stats.position >= target:
                return

    async def _looked(self) -> None:
        """When the worker has seen that its checkpoint is still its own, or has ended."""
        if not self._ended:
            asked = asyncio.get_running_loop().create_future()
            self._asking.append(asked)
            self._wake.set()
            await asked

    @staticmethod
    def _answer(asking: list[asyncio.Future[None]]) -> None:
        for asked in asking:
            if not asked.done():
                asked.set_result(None)
        asking.clear()

    async def _run(self, projection: Projection) -> None:
        log, pause = self.config.logger, _STANDBY
        names = {"projection": projection.name, "partition": self.config.partition_key}
        self._began = False
        while not self._stop.is_set():
            try:
                assignment = await self._assigned(projection)
                await self._follow(assignment)
            except Stopped:
                break
            except Fenced as reason:
                if log:
                    log.info("checkpoint moved", **names, reason=str(reason))
                await self._pause(_STANDBY * random.random())  # noqa: S311 - no secret
            except Unavailable as error:
                # as a subscription outlives its servers, so does who has to make another one
                if not self._began:
                    raise
                if log:
                    log.error("no server", **names, reason=str(error))  # noqa: TRY400 - one line says it
                await self._pause(pause * random.random())  # noqa: S311
                pause = min(pause * 2, _LONGEST_STANDBY)
            except SubscriberInUse:
                self._began = True
                if log and not self.stats.standby:
                    log.info("standing by: another worker has the partition", **names)
                self.stats.standby = True
                await self._pause(pause * (0.5 + random.random() / 2))  # noqa: S311
                pause = min(pause * 2, _LONGEST_STANDBY)
        if log:
            log.info("projection stopped", **names, position=str(self.stats.position))

    async def lag(self, projection: Projection) -> Lag:
        """How far the worker is behind now; two small reads."""
        return await lag_of(self.boundary, projection, self.stats.position)

    async def _assigned(self, projection: Projection) -> Assignment:
        """The worker's partition; a database that is away is waited for. Raises Stopped."""
        attempts = 0
        while not self._stop.is_set():
            try:
                return await self.checkpoints.assign(projection, self.boundary.name, self.config)
            except Exception as error:
                if not is_passing(error):
                    raise
                attempts += 1
                tell_away(self.config, attempts, error, projection=projection.name)
            await self._pause(min(0.05 * 2 ** min(attempts, 10), _LONGEST_WAIT))
        raise Stopped

    async def _follow(self, assignment: Assignment) -> None:
        worker = Worker(
            assignment,
            self.checkpoints,
            types=self.boundary.client.types,
            config=self.config,
            stats=self.stats,
            stop=self._stop,
        )
        self._moved.set()  # it may be where somebody waits for it to be, and nothing new come
        waking = asyncio.create_task(self._wake.wait())
        batch: asyncio.Task[list[Event]] | None = None
        try:
            async with self._subscription(assignment) as subscription:
                self._began = True
                if log := self.config.logger:
                    log.info(
                        "projection started",
                        projection=assignment.projection.name,
                        partition=assignment.partition,
                        position=str(assignment.position),
                    )
                while not self._stop.is_set():
                    batch = batch or asyncio.create_task(subscription.batch(self.config.batch_size))
                    patience = SAVE_AFTER if worker.has_unsaved else _LOOK_AFTER
                    await asyncio.wait((batch, waking), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                    if self._stop.is_set():
                        break
                    if waking.done():
                        self._wake.clear()
                        waking = asyncio.create_task(self._wake.wait())
                    if self._asking or not batch.done():
                        asking, self._asking = self._asking, []
                        try:
                            await worker.look()
                        except BaseException:
                            self._asking += asking
                            raise
                        self._answer(asking)
                        continue
                    events, batch = batch.result(), None
                    if not events:
                        raise ClientClosed(f'the client of projection "{assignment.projection.name}" was closed')
                    self.stats.standby = False
                    await worker.process(events)
                    self._moved.set()
                await worker.save()
        finally:
            for task in (waking, batch):
                if task is not None:
                    task.cancel()
                    with suppress(asyncio.CancelledError, Exception):
                        await task

    def _subscription(self, assignment: Assignment) -> Subscription:
        client, position = self.boundary.client, assignment.position
        subscription = Subscription(
            client.calls,
            Undecoded(),
            boundary=self.boundary.name,
            name=_subscriber(assignment),
            query=assignment.projection.query,
            after=position if position > NOTHING else None,
        )
        client.streams.add(subscription)
        return subscription

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()


def _subscriber(assignment: Assignment) -> str:
    """The name that only one worker of the partition has at a time, in the whole store."""
    place = hashlib.blake2b(assignment.place.encode(), digest_size=6).hexdigest()
    return f"projection {assignment.projection.name} {assignment.partition}/{assignment.total} {place}"


async def last_wanted(boundary: Boundary, projection: Projection, until: Position | None = None) -> Position:
    """The last event that the projection wants, up to a position; NOTHING when there is none."""
    if until is not None and until <= NOTHING:
        return NOTHING
    async for event in boundary.read(projection.query, start=until, descending=True, limit=1):
        return event.position
    return NOTHING


async def lag_of(boundary: Boundary, projection: Projection, position: Position) -> Lag:
    """How far a checkpoint at that position is behind the events that the projection wants."""
    after = position if position > NOTHING else None
    waiting = [event async for event in boundary.read(projection.query, after=after, limit=1)]
    if not waiting:
        return Lag(0, 0.0)
    last = [event async for event in boundary.read(projection.query, descending=True, limit=1)]
    oldest = waiting[0]
    age = (datetime.datetime.now(datetime.UTC) - oldest.created_at).total_seconds()
    return Lag(last[0].position.prepare - oldest.position.prepare + 1 if last else 1, max(age, 0.0))
