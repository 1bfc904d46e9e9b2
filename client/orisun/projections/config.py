"""How a projection is processed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ..errors import refuse
from ..logs import Logger
from ..position import Position
from .partitions import HashPartitions, PartitionStrategy


@dataclass(frozen=True, slots=True)
class PoisonPolicy:
    """What happens when ``handle`` raises.

    The event is tried ``attempts`` times, with growing pauses, each time in a transaction of its own. Then:

    - ``stop``: the processor ends with ``ProjectionStopped``; nothing of the event was written.
    - ``park``: the event is put aside in a table, to be replayed, and the projection goes on. Later events with the
      same key are put aside behind it (``hold``), so that they are never handled before it.
    - ``retry``: it is tried for ever.

    A lost database is no poison: it is waited for, whatever the policy. Five transactions in a row that are lost while
    ``handle`` has them are, and so is a statement that was cancelled, as by ``statement_timeout``.
    """

    then: Literal["stop", "park", "retry"] = "stop"
    attempts: int = 3
    #: Seconds before the second attempt; doubled before each further one.
    first_pause: float = 0.1
    longest_pause: float = 30.0
    hold: bool = True

    def __post_init__(self) -> None:
        if self.then not in ("stop", "park", "retry"):
            refuse(f'PoisonPolicy: then is "{self.then}"; it is one of stop, park and retry')
        if self.attempts < 1:
            refuse(f"PoisonPolicy: {self.attempts} attempts; give 1 or more")

    def pause(self, attempts: int) -> float:
        """Seconds to wait after that many attempts."""
        return float(min(self.first_pause * 2 ** min(attempts - 1, 30), self.longest_pause))


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What a processor has just committed."""

    projection: str
    partition: int
    #: Events handled; passed over (another partition's, or done before); put aside.
    handled: int
    skipped: int
    parked: int
    #: Seconds that the transaction took.
    seconds: float
    #: Where the checkpoint is now.
    position: Position
    #: Seconds since the last event of the batch was stored.
    age: float


@dataclass(frozen=True, slots=True)
class ProcessorConfig:
    """Settings of one worker of one projection."""

    #: Most events of one transaction.
    batch_size: int = 100
    #: This worker's partition, 0 to ``total_partitions - 1``.
    partition_key: int = 0
    #: How many partitions the projection has, over all processes.
    total_partitions: int = 1
    strategy: PartitionStrategy = field(default_factory=HashPartitions)
    #: Strategies that the projection had before, so that their checkpoints are understood.
    former_strategies: tuple[PartitionStrategy, ...] = ()
    #: Lay the projection out anew where it has another number of partitions. Only where no worker with another number
    #: is left that would lay it out back again; ``repartition`` does it once.
    repartition: bool = False
    #: Where a new projection begins: after this position; None is the first event.
    start_after: Position | None = None
    poison: PoisonPolicy = field(default_factory=PoisonPolicy)
    #: None costs nothing: no message is put together.
    logger: Logger | None = None
    #: Called after each commit, for metrics.
    on_batch: Callable[[BatchReport], None] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            refuse(f"batch_size is {self.batch_size}; give 1 or more")
        if not 0 <= self.partition_key < self.total_partitions:
            refuse(
                f"partition_key is {self.partition_key} of {self.total_partitions} partitions; they are numbered from 0"
            )
