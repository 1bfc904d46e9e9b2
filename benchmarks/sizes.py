"""How much is measured: everything in about 25 minutes, or a smoke of 3 minutes that only shows that it all runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Counts are events unless said otherwise."""

    #: Interleaved rounds whose median counts.
    rounds: int
    #: Factor on the durations of the load generator (1: 5 to 8 seconds a scenario).
    scale: float
    #: The log for paging, catch-up and the read of one tag.
    log: int
    #: Logs whose appends and context checks are compared.
    small: int
    big: int
    #: Alternating pairs of operations on these two.
    pairs: int
    #: What the publisher drains.
    backlog: int
    #: Calls at once.
    burst: int
    #: Boundaries at the same time.
    boundaries: int
    #: Rows (and seconds) that a floor inserts in each round, at most; as many as the load generator appends in batches,
    #: because inserting becomes slower as table, index and WAL grow.
    floor_rows: int
    floor_seconds: float
    #: Appended and delivered while memory is watched.
    watched: int
    #: Seconds after the load of a log, for the publisher to drain it.
    settle: float


FULL = Sizes(
    rounds=3,
    scale=0.4,
    log=100_000,
    small=10_000,
    big=1_000_000,
    pairs=400,
    backlog=100_000,
    burst=10_000,
    boundaries=16,
    floor_rows=150_000,
    floor_seconds=2.0,
    watched=500_000,
    settle=6.0,
)

QUICK = Sizes(
    rounds=1,
    scale=0.06,
    log=10_000,
    small=2_000,
    big=40_000,
    pairs=30,
    backlog=10_000,
    burst=1_000,
    boundaries=4,
    floor_rows=4_000,
    floor_seconds=0.4,
    watched=20_000,
    settle=1.0,
)
