"""What a processor, and who looks after it, need of the place where checkpoints are kept."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from ..events import Event
from ..position import NOTHING, Position
from .config import ProcessorConfig
from .partitions import Layout
from .projection import Projection


@dataclass(frozen=True, slots=True)
class Assignment:
    """One partition of a projection, as a worker took it up."""

    projection: Projection
    boundary: str
    partition: int
    total: int
    #: Grows whenever the checkpoints are reset or laid out anew.
    generation: int = 0
    position: Position = NOTHING
    #: Earlier layouts that say what is done already.
    history: tuple[Layout, ...] = ()
    #: Tells the place of these checkpoints from others: a projection of the same name there is another one, and its
    #: workers do not stand by for this one's.
    place: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a partition has come."""

    partition: int
    position: Position
    handled: int
    updated_at: datetime.datetime


@dataclass(frozen=True, slots=True)
class ParkedEvent:
    """An event that was put aside. ``attempts`` is 0 where it waits behind another one of its key."""

    event_id: str
    event_type: str
    key: str | None
    position: Position
    #: What was raised, and where.
    reason: str
    attempts: int
    parked_at: datetime.datetime


@dataclass(frozen=True, slots=True)
class Taken:
    """A parked event that is off the list when what is done with ``tx`` is."""

    tx: Any


class Batch(Protocol):
    """Some events and the checkpoint, which change together or (at least once) one after the other."""

    #: What ``handle`` gets.
    tx: Any
    #: The keys of which events are parked.
    parked_keys: frozenset[str]

    async def park(self, event: Event, key: str | None, *, reason: str, attempts: int) -> None:
        """Put an event aside; ``attempts`` is 0 for one that waits behind another of its key."""

    async def advance(self, position: Position, handled: int) -> None:
        """Move the checkpoint, at the end of the batch."""


class Checkpoints(Protocol):
    """Where checkpoints are kept: ``PostgresCheckpoints`` (exactly once), ``FileCheckpoints`` (at least once), or a
    class of your own."""

    async def assign(self, projection: Projection, boundary: str, config: ProcessorConfig) -> Assignment:
        """Take up a partition, making what is missing. Raises PartitionMismatch, VersionMismatch."""

    def batch(self, assignment: Assignment, position: Position) -> AbstractAsyncContextManager[Batch]:
        """A batch that begins where the worker believes the checkpoint to be. Raises Fenced when it is not there."""

    async def look(self, assignment: Assignment, position: Position) -> None:
        """What a worker does that has had nothing to do for a while. Raises Fenced when the checkpoint is another one
        than at ``assign``, or before the position. A class of your own may leave it out: its workers then see at their
        next batch that somebody else has moved the checkpoint."""


class AdministeredCheckpoints(Checkpoints, Protocol):
    """Checkpoints that ``Administration`` can look after; both of this library are."""

    def keeper(self, boundary: str) -> Keeper:
        """Who looks after the projections of a boundary."""


class Keeper(Protocol):
    """Looks after the projections of one boundary; workers may run meanwhile."""

    async def standings(self, projection: Projection) -> list[Standing]:
        """Every partition, in order; none for a projection that was never started."""

    async def parked(self, projection: Projection) -> list[ParkedEvent]:
        """The events that were put aside, in the order of positions."""

    def taking(self, projection: Projection, event_id: str) -> AbstractAsyncContextManager[Taken | None]:
        """What a parked event is handled with; it is off the list at the end of the block, unless that raises. None
        where it is not parked any more. Raises VersionMismatch where the read model is another version's."""

    async def failed_again(self, projection: Projection, event_id: str, reason: str) -> None:
        """Note that a parked event could not be handled."""

    async def discard(self, projection: Projection, event_ids: Sequence[str]) -> None:
        """Forget parked events."""

    async def repartition(self, projection: Projection, config: ProcessorConfig) -> None:
        """Lay the projection out for the config's number of partitions. Raises PartitionMismatch where there is none
        of that name."""

    async def reset(self, projection: Projection) -> None:
        """Empty the read model and begin with the first event. Raises NotFound where there is none of that name."""
