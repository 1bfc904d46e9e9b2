"""Handing batches of events to a projection: one transaction each, and what happens when an event cannot be handled."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..codecs import EventTypes
from ..events import Event
from ..position import NOTHING, Position
from .calling import call
from .checkpoints import Assignment, Batch, Checkpoints
from .config import BatchReport, ProcessorConfig
from .errors import ProjectionStopped, is_passing, reason_of
from .partitions import HashPartitions, PartitionStrategy, partition_of

_LOG = logging.getLogger("orisun")
#: Events passed over, and seconds, after which the checkpoint is moved although nothing was handled: the lag that
#: others see of a partition whose keys are quiet is not to grow.
_SKIPPED, SAVE_AFTER = 1_000, 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
#: So many transactions in a row that were lost while ``handle`` had them are ``handle``'s doing, whatever it raised.
_MOST_LOST = 5


@dataclass
class Stats:
    """What a processor has done since it was started."""

    handled: int = 0
    #: Another partition's events, or done before the partitions were laid out anew.
    skipped: int = 0
    parked: int = 0
    batches: int = 0
    #: Attempts at events that failed.
    failures: int = 0
    #: Another worker has the partition.
    standby: bool = False
    #: The last event that was taken in or passed over.
    position: Position = NOTHING
    #: Seconds between storing and handling of the last event.
    age: float = 0.0


@dataclass(frozen=True, slots=True)
class _Item:
    event: Event
    key: str | None
    #: Why it cannot even be decoded.
    failure: Exception | None = None


class Stopped(Exception):
    """The processor was asked to stop while it waited."""


class _HandlerError(Exception):
    """What ``handle`` raised, told from what the database raises around it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(type(error).__name__)
        self.error = error


def tell_away(config: ProcessorConfig, attempts: int, error: Exception, **names: Any) -> None:
    """Say that the database is waited for; where nobody takes the messages, to the library's logger."""
    reason = reason_of(error)  # and no traceback, which may quote data
    if config.logger:
        config.logger.error("database away", **names, attempts=attempts, reason=reason)
    else:
        _LOG.warning('projection "%s": the database is away and waited for: %s', names["projection"], reason)


class Worker:
    """Processes the batches of one assignment, in order."""

    def __init__(
        self,
        assignment: Assignment,
        checkpoints: Checkpoints,
        *,
        types: EventTypes,
        config: ProcessorConfig,
        stats: Stats,
        stop: asyncio.Event,
    ) -> None:
        self._assignment, self._projection, self._checkpoints = assignment, assignment.projection, checkpoints
        self._types, self._config, self._stats, self._stop = types, config, stats, stop
        self._strategies: dict[str, PartitionStrategy] = {
            one.name: one for one in (HashPartitions(), *config.former_strategies, config.strategy)
        }
        #: Where the checkpoint is kept; ``stats.position`` may have moved past it over events of others.
        self._saved = assignment.position
        self._unsaved, self._saved_at = 0, time.monotonic()
        self._names: dict[str, Any] = {"projection": assignment.projection.name, "partition": assignment.partition}
        self._lost = 0
        stats.position = assignment.position

    async def process(self, events: Sequence[Event]) -> None:
        """Take in these events, which follow on those before. Raises ProjectionStopped, Fenced, Stopped."""
        items = [item for item in map(self._item, events) if item is not None]
        last, skipped = events[-1].position, len(events) - len(items)
        self._stats.skipped += skipped
        self._stats.age = (datetime.datetime.now(datetime.UTC) - events[-1].created_at).total_seconds()
        if not items:
            # others' events move the checkpoint now and then
            self._stats.position = last
            self._unsaved += skipped
            if self._unsaved >= _SKIPPED or time.monotonic() - self._saved_at >= SAVE_AFTER:
                await self.save()
            return
        try:
            await self._until_possible(items, last, skipped)
        except _HandlerError:
            # one of them cannot be handled: each by itself, so that the others are
            for number, item in enumerate(items):
                await self._alone(item, last if number == len(items) - 1 else item.event.position)

    @property
    def has_unsaved(self) -> bool:
        """Whether it has come past events of others that the checkpoint does not know of."""
        return bool(self._unsaved)

    async def save(self) -> None:
        """Keep how far the worker has come past events of others."""
        if self._unsaved:
            await self._until_possible([], self._stats.position)

    async def look(self) -> None:
        """See whether the checkpoint is still the worker's. Raises Fenced."""
        if self._unsaved:
            await self.save()  # which sees it too
        elif look := getattr(self._checkpoints, "look", None):  # checkpoints of one's own may do without
            await self._while_away(lambda: look(self._assignment, self._saved))

    def _item(self, event: Event) -> _Item | None:
        """The event decoded, with its key; None when it is another partition's, or was done under an earlier layout."""
        failure: Exception | None = None
        key: str | None = None
        try:
            event = replace(event, data=self._types.decode(event.event_type, event.raw_data, event.metadata))
        except Exception as error:
            failure = error
        try:
            # also of what cannot be decoded, so that later events of its key can wait behind it
            key = self._projection.key_of(event)
        except Exception as error:
            failure = failure or error
        total = self._assignment.total
        if total > 1 and partition_of(self._config.strategy, key, total) != self._assignment.partition:
            return None
        if any(layout.covers(key, event.position, self._strategies) for layout in self._assignment.history):
            return None
        return _Item(event, key, failure)

    async def _until_possible(
        self, items: Sequence[_Item], last: Position, skipped: int = 0, parked: tuple[str, int] | None = None
    ) -> None:
        """Handle them in one transaction, again and again while the database is away. Raises _HandlerError."""
        await self._while_away(lambda: self._transact(items, last, skipped, parked))

    async def _while_away(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it, again and again while the database is away. Raises Stopped."""
        attempts = 0
        while True:
            try:
                await work()
                return
            except _HandlerError:
                raise
            except Exception as error:
                if not is_passing(error):
                    raise
                attempts += 1
                tell_away(self._config, attempts, error, **self._names)
                await self._pause(min(_FIRST_PAUSE * 2 ** min(attempts, 10), _LONGEST_PAUSE))

    async def _alone(self, item: _Item, end: Position) -> None:
        """One event in a transaction of its own, and what the policy says when that fails."""
        policy, event, attempts = self._config.poison, item.event, 0
        while True:
            try:
                await self._until_possible([item], end)
                return
            except _HandlerError as failed:
                error = failed.error
            attempts += 1
            self._stats.failures += 1
            reason, is_last = reason_of(error), attempts >= policy.attempts
            if logger := self._config.logger:
                names = self._names | {"event_id": event.event_id, "event_type": event.event_type}
                logger.error(
                    "event not handled", **names, position=str(event.position), attempts=attempts, reason=reason
                )
            if is_last and policy.then == "stop":
                raise ProjectionStopped(
                    self._projection.name, event.event_id, event.position, attempts, reason
                ) from error
            if is_last and policy.then == "park":
                await self._until_possible([item], end, parked=(reason, attempts))
                return
            await self._pause(policy.pause(attempts))

    async def _transact(
        self, items: Sequence[_Item], last: Position, skipped: int, parked: tuple[str, int] | None
    ) -> None:
        """One transaction: these events, or their parking, and the checkpoint."""
        began, handled, is_given, is_done = time.monotonic(), 0, False, False
        try:
            async with self._checkpoints.batch(self._assignment, self._saved) as batch:
                for item in items:
                    if parked is not None:
                        await batch.park(item.event, item.key, reason=parked[0], attempts=parked[1])
                    elif self._config.poison.hold and item.key is not None and item.key in batch.parked_keys:
                        await batch.park(item.event, item.key, reason="waits behind a parked event", attempts=0)
                    else:
                        is_given = True
                        await self._handle(batch, item)
                        handled += 1
                is_done = True
                await batch.advance(last, handled)
        except _HandlerError:
            raise
        except Exception as error:
            # a database that is away does not come as far as to the handler, and a full disk comes after it
            self._lost += is_given and not (is_done and isinstance(error, OSError))
            # the handler caught what had already ended its transaction, or left to the commit what cannot be committed
            is_unfit = is_done and not is_passing(error, in_handler=True) and not isinstance(error, OSError)
            if is_given and (is_unfit or self._lost >= _MOST_LOST):
                self._lost = 0
                raise _HandlerError(error) from error
            raise
        self._stats.handled += handled
        self._stats.parked += len(items) - handled
        self._stats.batches += 1
        self._stats.position = self._saved = last
        self._unsaved, self._saved_at = 0, time.monotonic()
        self._lost = 0
        self._report(handled, skipped, len(items) - handled, time.monotonic() - began)

    async def _handle(self, batch: Batch, item: _Item) -> None:
        if item.failure is not None:
            raise _HandlerError(item.failure)
        try:
            await call(self._projection.handle, batch.tx, item.event)
        except Exception as error:
            # a connection of asyncpg has a method of that name; other clients, as targets of files, may have a property
            is_closed = getattr(batch.tx, "is_closed", None)
            is_lost = not isinstance(error, OSError) or (callable(is_closed) and is_closed())
            if is_lost and is_passing(error, in_handler=True):
                raise
            raise _HandlerError(error) from error

    def _report(self, handled: int, skipped: int, parked: int, seconds: float) -> None:
        if logger := self._config.logger:
            logger.debug("batch committed", **self._names, handled=handled, parked=parked, position=str(self._saved))
        if self._config.on_batch is not None:
            name, partition = self._names["projection"], self._names["partition"]
            self._config.on_batch(
                BatchReport(name, partition, handled, skipped, parked, seconds, self._saved, self._stats.age)
            )

    async def _pause(self, seconds: float) -> None:
        """Raises Stopped when the processor is asked to stop meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return
        raise Stopped
