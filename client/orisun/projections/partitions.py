"""Which partition of a projection handles an event, and what becomes of that when their number changes.

A layout is a number of partitions and the checkpoint of each. When a projection gets another layout, the new partitions
begin at the least of the old checkpoints and leave out what the old ones have done already: an event is done when the
old partition of its key had come as far. So no event is handled twice or left out, whatever the numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..position import NOTHING, Position
from .errors import ProjectionError, reason_of


class PartitionStrategy(Protocol):
    """Which partition a key belongs to. The same key and number must always give the same answer, in every process."""

    #: Kept with the checkpoints: a strategy that answers otherwise needs another name.
    name: str

    def partition(self, key: str | None, total: int) -> int:
        """0 to ``total - 1``; ``key`` is None for events without one."""


class HashPartitions:
    """By a hash of the key; events without a key go to partition 0."""

    name = "hash"

    def partition(self, key: str | None, total: int) -> int:
        """See ``PartitionStrategy``."""
        if key is None or total == 1:
            return 0
        return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()) % total


def partition_of(strategy: PartitionStrategy, key: str | None, total: int) -> int:
    """What the strategy says. Raises ProjectionError where that is no partition, whose events nobody would handle."""
    try:
        number = strategy.partition(key, total)
    except Exception as error:
        raise ProjectionError(f'the partition strategy "{strategy.name}" failed: {reason_of(error)}') from error
    if type(number) is not int or not 0 <= number < total:
        raise ProjectionError(
            f'the partition strategy "{strategy.name}" gave {number!r} of {total} partitions; they are numbered from 0'
            f" to {total - 1}"
        )
    return number


@dataclass(frozen=True, slots=True)
class Layout:
    """How far each partition had come; ``len(positions)`` is their number."""

    strategy: str
    positions: tuple[Position, ...]

    def covers(self, key: str | None, position: Position, strategies: Mapping[str, PartitionStrategy]) -> bool:
        """Whether the event of that key at that position was done under this layout."""
        return position <= self.positions[partition_of(strategies[self.strategy], key, len(self.positions))]

    def as_json(self) -> dict[str, Any]:
        return {"strategy": self.strategy, "positions": [list(position) for position in self.positions]}

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Layout:
        return cls(value["strategy"], tuple(Position(*pair) for pair in value["positions"]))


def relaid(history: Sequence[Layout], current: Layout) -> tuple[Position, tuple[Layout, ...]]:
    """Where the partitions of a new layout begin, and the earlier layouts that still say what is done."""
    start = min(current.positions, default=NOTHING)
    return start, still_needed((*history, current), start)


def still_needed(history: Sequence[Layout], start: Position) -> tuple[Layout, ...]:
    """The layouts in which a partition had come further than ``start``."""
    return tuple(layout for layout in history if max(layout.positions, default=NOTHING) > start)
