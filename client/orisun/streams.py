"""Aggregate streams: the events of one aggregate, numbered by versions, over criteria.

The stored data of each event has three more keys: ``aggregate_type``, ``aggregate_id`` and ``aggregate_version``.
"""

from __future__ import annotations

import asyncio
import copy
import enum
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .errors import Conflict, refuse
from .events import Event, NewEvent, as_new_event
from .jsontext import key_text
from .logs import Logger
from .position import NOTHING, Position
from .queries import AppendCondition, Query, where
from .retries import RetryPolicy
from .snapshots import Snapshot, Snapshots
from .store import Store

S = TypeVar("S")

TYPE, ID, VERSION = "aggregate_type", "aggregate_id", "aggregate_version"

#: A position that no event has: a condition with it holds for nothing, an append under it is only good as a repeat.
_NOWHERE = Position(0, 0)
_FIRST = 1


class Expected(enum.Enum):
    """What an append expects of a stream, where it is not an exact version."""

    #: Whatever its version is.
    ANY = "any"
    #: That it has no events yet.
    NO_STREAM = "no stream"


ANY, NO_STREAM = Expected.ANY, Expected.NO_STREAM


class VersionConflict(Conflict):
    """The stream is not at the version that the append expected (0: no events)."""

    def __init__(self, stream: str, expected: int, actual: int, positions: tuple[Position, Position]) -> None:
        super().__init__(f"{stream} is at version {actual}, not {expected}: read it and decide again", *positions)
        self.expected_version, self.actual_version = expected, actual
        self._stream = stream

    def __reduce__(self) -> tuple[Any, ...]:
        versions = (self.expected_version, self.actual_version)
        return type(self), (self._stream, *versions, (self.expected, self.actual))


@dataclass(frozen=True, slots=True)
class Appended:
    """Where an append to a stream ended: the version and position of its last event."""

    version: int
    position: Position


@dataclass(frozen=True)
class Folded(Generic[S]):
    """The state of an aggregate, and the event that it is as of (version 0: none)."""

    state: S
    version: int
    position: Position


class AggregateStream:
    """The events of one aggregate; ``boundary.stream(aggregate_type, aggregate_id)`` makes it.

    An index over ``aggregate_type`` and ``aggregate_id`` makes the look-up of a version cheap, whatever the size of the
    boundary and of the stream.
    """

    def __init__(self, store: Store, aggregate_type: str, aggregate_id: object) -> None:
        self._store = store
        self._logger: Logger | None = getattr(store, "logger", None)
        self.aggregate_type, self.aggregate_id = aggregate_type, key_text(ID, aggregate_id)
        #: The events of this aggregate.
        self.query: Query = where({TYPE: aggregate_type, ID: self.aggregate_id})

    def __str__(self) -> str:
        return f"{self.aggregate_type}/{self.aggregate_id}"

    async def append(
        self,
        events: Iterable[object],
        *,
        expected: int | Expected = ANY,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
    ) -> Appended:
        """Append events with the versions that follow the stream's, all or none.

        ``expected`` is the exact version that the stream must be at (0 is the same as ``NO_STREAM``), or ``ANY``: then
        an append that another one overtakes takes the next versions, as often as ``retry`` says. Repeating an append
        with the same ``NewEvent`` objects is harmless, except under ``ANY``, where their versions would be others.

        Raises VersionConflict with both versions, and what ``Boundary.append`` raises.
        """
        if not isinstance(expected, Expected) and (type(expected) is not int or expected < 0):
            refuse(f"expected {expected!r} is no version: give a whole number from 0 on, ANY or NO_STREAM")
        if isinstance(events, NewEvent):
            refuse("append takes a list of events: append([event])")
        items = [as_new_event(item) for item in events]
        exact = 0 if expected is NO_STREAM else expected
        policy = retry or RetryPolicy(attempts=20, first=0.005, longest=0.2)
        failures = 0
        while True:
            version, position = (0, NOTHING) if exact == failures == 0 else await self._head(timeout)
            condition = AppendCondition(self.query, position)
            if isinstance(exact, int) and exact != version:
                # the append may be a repeat, which the server answers whatever the condition; else it refuses
                version, condition = exact, AppendCondition(self.query, _NOWHERE)
            numbered = [
                event.with_keys(**{TYPE: self.aggregate_type, ID: self.aggregate_id, VERSION: version + number})
                for number, event in enumerate(items, _FIRST)
            ]
            try:
                last = await self._store.append(numbered, condition=condition, timeout=timeout)
            except Conflict as conflict:
                failures += 1
                if isinstance(exact, int):
                    actual, at = await self._head(timeout)
                    if actual != exact:
                        raise VersionConflict(str(self), exact, actual, (conflict.expected, at)) from None
                # overtaken; or what came with the aggregate's keys is no event of the stream
                if not policy.allows(failures):
                    raise
                await asyncio.sleep(policy.pause(failures))
                continue
            appended = Appended(version + len(items), last)
            if log := self._logger:
                log.debug("appended to stream", stream=str(self), events=len(items), version=appended.version)
            return appended

    async def version(self, *, timeout: float | None = None) -> int:
        """The version of the last event; 0 when there is none."""
        return (await self._head(timeout))[0]

    async def read(self, from_version: int = 1, to_version: int | None = None) -> AsyncIterator[Event]:
        """Iterate over the events of these versions, both included, in order; None is up to the last."""
        if from_version < 1:
            refuse(f"from_version {from_version}: versions begin with 1")
        start = None
        if from_version > 1:
            first = await self._store.latest(
                where({TYPE: self.aggregate_type, ID: self.aggregate_id, VERSION: from_version})
            )
            if first.event is None:
                return
            start = first.position
        async for event in self._store.read(self.query, start=start):
            version = _version(event)
            if version is None:
                continue
            if to_version is not None and version > to_version:
                return
            yield event

    async def fold(
        self,
        initial: S,
        apply: Callable[[S, Event], S],
        *,
        snapshots: Snapshots[S] | None = None,
        every: int = 100,
    ) -> Folded[S]:
        """The aggregate's state: ``apply`` over all events, from the latest snapshot on where there is one.

        A new snapshot is kept when ``every`` events or more were read. ``initial`` is copied before use. A snapshot
        whose event is not there, as after a restore of an older backup, is not used.
        """
        snapshot = await snapshots.load(str(self)) if snapshots is not None else None
        made = await self._folded(snapshot, apply) if snapshot is not None else None
        if made is None:
            made = await self._folded(Snapshot(str(self), copy.deepcopy(initial), 0, NOTHING), apply)
        assert made is not None  # noqa: S101 - NOTHING is found always
        folded, count = made
        if snapshots is not None and count >= every:
            await snapshots.save(Snapshot(str(self), folded.state, folded.version, folded.position))
        return folded

    async def _folded(self, begin: Snapshot[S], apply: Callable[[S, Event], S]) -> tuple[Folded[S], int] | None:
        """The state on from a snapshot, and how many events were applied; None where its event is not there."""
        state, version, position = begin.state, begin.version, begin.position
        count, found = 0, position == NOTHING
        # beginning with the snapshot's own event shows whether it is of this history, at no further call
        async for event in self._store.read(self.query, start=None if found else position):
            own = _version(event)
            if not found:
                if (own, event.position) != (version, position):
                    return None
                found = True
                continue
            if own is None:
                continue
            state = apply(state, event)
            version, position = own, event.position
            count += 1
        return (Folded(state, version, position), count) if found else None

    async def _head(self, timeout: float | None) -> tuple[int, Position]:
        """The version of the stream, and the position of the latest event that its query finds."""
        latest = await self._store.latest(self.query, timeout=timeout)
        if latest.event is None:
            return 0, NOTHING
        version = _version(latest.event)
        if version is None:
            async for event in self._store.read(self.query, descending=True):
                if (version := _version(event)) is not None:
                    break
        return version or 0, latest.position


def version_of(event: Event) -> int:
    """The version of an event in its aggregate's stream. Raises InvalidArgument for an event of no stream."""
    version = _version(event)
    if version is None:
        refuse(f"the event at {event.position} has no {VERSION}: it was not appended to a stream")
    return version


def _version(event: Event) -> int | None:
    """None for an event that has the aggregate's keys and was not appended to its stream; streams pass it over."""
    version = event.fields.get(VERSION)
    return version if type(version) is int else None
