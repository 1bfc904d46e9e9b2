"""Counters and histograms of the hot path: plain numbers, read by whoever exposes them.

prometheus_client's own take a lock and look labels up for each value, some microseconds a call; these take a tenth of
that. All of them are of one event loop and need no lock. Labels are bounded: rpcs and statuses are fixed, boundaries
are those of the catalog.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict

#: Upper bounds of buckets, in seconds, from what one indexed read takes to what nobody should wait for.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
#: Upper bounds of buckets of numbers of things.
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)


class Histogram:
    """How often values fell into each bucket, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        #: For each bound the values up to it and above the one before; the last is for those above all.
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)


class BoundaryMetrics:
    """What happened in one boundary, on this server, since it started."""

    __slots__ = (
        "appends",
        "commit_seconds",
        "conflicts",
        "delivered",
        "events",
        "failures",
        "flush_calls",
        "flush_events",
        "publish_events",
        "publish_seconds",
        "published",
        "reads",
    )

    def __init__(self) -> None:
        #: SaveEvents that were stored, repeats of stored ones included; their events.
        self.appends = self.events = 0
        #: SaveEvents that were refused because their context had changed; and for any other reason.
        self.conflicts = self.failures = 0
        #: Events that the publisher handed to JetStream, and that subscriptions were given.
        self.published = self.delivered = 0
        self.commit_seconds = Histogram()
        self.flush_calls, self.flush_events = Histogram(SIZES), Histogram(SIZES)
        self.publish_seconds, self.publish_events = Histogram(), Histogram(SIZES)
        #: By kind: page, latest, scan.
        self.reads: defaultdict[str, Histogram] = defaultdict(Histogram)


class RpcMetrics:
    """The calls of one rpc; streams count when they end."""

    __slots__ = ("name", "ok", "other", "running", "seconds")

    def __init__(self, name: str) -> None:
        self.name = name
        self.running = self.ok = 0
        #: Calls that ended with another status, by its name.
        self.other: Counter[str] = Counter()
        self.seconds = Histogram()


class Metrics:
    """All counts of a server."""

    def __init__(self) -> None:
        self.boundaries: defaultdict[str, BoundaryMetrics] = defaultdict(BoundaryMetrics)
        self.rpcs: dict[str, RpcMetrics] = {}

    def rpc(self, name: str) -> RpcMetrics:
        """The counts of an rpc."""
        return self.rpcs.setdefault(name, RpcMetrics(name))
