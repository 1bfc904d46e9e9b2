"""What a processor needs of the place where checkpoints are kept."""

from __future__ import annotations

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
