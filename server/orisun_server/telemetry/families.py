"""Every metric of a server, by name: made from the plain numbers when somebody asks.

Names and units follow Prometheus's conventions (base units, ``_total`` for counters); those of rpcs are the ones that
gRPC dashboards know (``grpc_server_handled_total``). docs/telemetry.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ..delivery.publishers import Publishers
from ..delivery.subscription import Subscriptions
from ..observation import BoundaryMetrics, Histogram, Watch
from ..storage.database import Database
from ..storage.group_commit import Appender
from .sampler import Sampler


class Health(Protocol):
    """Of transport/health.py's state, what there is a metric of."""

    @property
    def serving(self) -> bool: ...
    @property
    def degraded(self) -> bool: ...

    delivery_ok: bool


class Families:
    """Collects the families of one server; a collector as prometheus_client wants it."""

    def __init__(
        self,
        *,
        watch: Watch,
        health: Health,
        appender: Appender,
        database: Database,
        publishers: Publishers,
        subscriptions: Subscriptions,
        sampler: Sampler,
    ) -> None:
        self._watch, self._health, self._appender, self._database = watch, health, appender, database
        self._publishers, self._subscriptions, self._sampler = publishers, subscriptions, sampler

    def collect(self) -> Iterator[Metric]:
        yield from self._server()
        yield from self._calls()
        yield from self._boundaries()
        yield from self._delivery()
        yield from self._resources()

    def _server(self) -> Iterator[Metric]:
        yield _gauge("orisun_build_info", "The version that runs; always 1.", {(_version(),): 1}, ("version",))
        yield _gauge("orisun_serving", "1 while the server takes calls.", {(): self._health.serving})
        yield _gauge("orisun_degraded", "1 while it serves without live delivery.", {(): self._health.degraded})
        yield _gauge("orisun_nats_connected", "1 while NATS can be reached.", {(): self._health.delivery_ok})

    def _calls(self) -> Iterator[Metric]:
        names = ("grpc_service", "grpc_method")
        handled = CounterMetricFamily(
            "grpc_server_handled", "Calls that ended, by status.", labels=(*names, "grpc_code")
        )
        rpcs = [(_rpc(name), counts) for name, counts in sorted(self._watch.metrics.rpcs.items())]
        for rpc, counts in rpcs:
            for status, number in (("OK", counts.ok), *sorted(counts.other.items())):
                handled.add_metric([*rpc, status], number)
        yield handled
        seconds = HistogramMetricFamily("grpc_server_handling_seconds", "Duration of calls.", labels=names)
        for rpc, counts in rpcs:
            _add(seconds, rpc, counts.seconds)
        yield seconds
        running = {rpc: counts.running for rpc, counts in rpcs}
        yield _gauge("grpc_server_in_flight", "Calls under way, streams included.", running, names)

    def _boundaries(self) -> Iterator[Metric]:
        found = sorted(self._watch.metrics.boundaries.items())
        appends = CounterMetricFamily("orisun_appends", "SaveEvents, by result.", labels=("boundary", "result"))
        for boundary, counts in found:
            for result, number in (
                ("ok", counts.appends),
                ("conflict", counts.conflicts),
                ("error", counts.failures),
            ):
                appends.add_metric([boundary, result], number)
        yield appends
        for name, text, value in _COUNTERS:
            family = CounterMetricFamily(name, text, labels=("boundary",))
            for boundary, counts in found:
                family.add_metric([boundary], value(counts))
            yield family
        for name, text, histogram in _HISTOGRAMS:
            distribution = HistogramMetricFamily(name, text, labels=("boundary",))
            for boundary, counts in found:
                _add(distribution, (boundary,), histogram(counts))
            yield distribution
        reads = HistogramMetricFamily(
            "orisun_read_duration_seconds", "Duration of reads in PostgreSQL.", labels=("boundary", "kind")
        )
        for boundary, counts in found:
            for kind, histogram_of_kind in sorted(counts.reads.items()):
                _add(reads, (boundary, kind), histogram_of_kind)
        yield reads
        queries = self._watch.queries
        for name, text, numbers in (
            ("orisun_slow_queries", "Reads and checks that took longer than the threshold.", queries.slow),
            ("orisun_unindexed_queries", "Criteria looked up without an index (checks: a sample).", queries.unindexed),
        ):
            family = CounterMetricFamily(name, text, labels=("boundary",))
            for boundary, number in sorted(numbers.items()):
                family.add_metric([boundary], number)
            yield family

    def _delivery(self) -> Iterator[Metric]:
        progress = sorted(self._sampler.progress.values())
        label = ("boundary",)
        yield _gauge(
            "orisun_head_position",
            "Number of the last event.",
            {(one.boundary,): one.head.prepare for one in progress},
            label,
        )
        yield _gauge(
            "orisun_publisher_lag_events",
            "Events that are stored and not published, over all servers.",
            {(one.boundary,): one.lag_events for one in progress},
            label,
        )
        yield _gauge(
            "orisun_publisher_lag_seconds",
            "Age of the oldest event that is not published, over all servers.",
            {(one.boundary,): one.lag_seconds for one in progress},
            label,
        )
        epochs = self._publishers.epochs()
        yield _gauge(
            "orisun_publisher_lease_held",
            "1 on the server that publishes the boundary.",
            {(one.boundary,): one.boundary in epochs for one in progress},
            label,
        )
        yield _gauge(
            "orisun_publisher_lease_epoch",
            "Epoch of the publisher's lease, on the server that holds it; grows with each holder.",
            {(boundary,): epoch for boundary, epoch in epochs.items()},
            label,
        )
        numbers: dict[tuple[str, ...], float] = {(one.boundary,): 0 for one in progress}
        lags = dict(numbers)
        heads = self._sampler.progress
        for open_one in self._subscriptions.connected():
            key = (open_one.boundary,)
            numbers[key] = numbers.get(key, 0) + 1
            if open_one.boundary in heads:
                lag = heads[open_one.boundary].head.prepare - open_one.position.prepare
                lags[key] = max(lags.get(key, 0), lag)
        yield _gauge("orisun_subscriptions", "Open catch-up subscriptions of this server.", numbers, label)
        yield _gauge(
            "orisun_subscription_lag_events", "Events that the slowest subscription has not covered.", lags, label
        )

    def _resources(self) -> Iterator[Metric]:
        calls, size = self._appender.waiting
        yield _gauge("orisun_append_queue_calls", "SaveEvents that have no answer yet.", {(): calls})
        yield _gauge("orisun_append_queue_bytes", "Bytes of SaveEvents that have no answer yet.", {(): size})
        connections: dict[tuple[str, ...], float] = {}
        most: dict[tuple[str, ...], float] = {}
        for name, pool in self._database.pools():
            idle = pool.get_idle_size()
            connections[name, "idle"], connections[name, "used"] = idle, pool.get_size() - idle
            most[name,] = pool.get_max_size()
        yield _gauge("orisun_pool_connections", "Connections to PostgreSQL.", connections, ("pool", "state"))
        yield _gauge("orisun_pool_max_connections", "Most connections of a pool.", most, ("pool",))
        use = self._sampler.jetstream
        if use is not None:
            stored = {("file",): use.file_bytes, ("memory",): use.memory_bytes}
            yield _gauge("orisun_jetstream_bytes", "Bytes of all streams of the account.", stored, ("storage",))
            yield _gauge("orisun_jetstream_streams", "Streams of the account.", {(): use.streams})


_COUNTERS: tuple[tuple[str, str, Callable[[BoundaryMetrics], int]], ...] = (
    ("orisun_events_appended", "Events of SaveEvents that were stored.", lambda counts: counts.events),
    ("orisun_events_published", "Events handed to JetStream.", lambda counts: counts.published),
    ("orisun_events_delivered", "Events given to subscriptions.", lambda counts: counts.delivered),
)
_HISTOGRAMS: tuple[tuple[str, str, Callable[[BoundaryMetrics], Histogram]], ...] = (
    ("orisun_commit_duration_seconds", "Duration of a flush of group commit.", lambda counts: counts.commit_seconds),
    ("orisun_flush_calls", "Calls of a flush.", lambda counts: counts.flush_calls),
    ("orisun_flush_events", "Events that a flush stored.", lambda counts: counts.flush_events),
    ("orisun_publish_duration_seconds", "Duration of a publisher's batch.", lambda counts: counts.publish_seconds),
    ("orisun_publish_events", "Events of a publisher's batch.", lambda counts: counts.publish_events),
)


def _gauge(name: str, text: str, values: Mapping[Any, float], labels: Iterable[str] = ()) -> Metric:
    """``values`` by the values of the labels."""
    family = GaugeMetricFamily(name, text, labels=tuple(labels))
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _add(family: HistogramMetricFamily, labels: Iterable[str], histogram: Histogram) -> None:
    if not histogram.count:
        return  # hundreds of quiet boundaries would fill megabytes
    bounds = [*map(str, map(float, histogram.bounds)), "+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))
    family.add_metric(list(labels), buckets, histogram.sum)


def _rpc(name: str) -> tuple[str, str]:
    service, _, method = name.rpartition("/")
    return service, method


def _version() -> str:
    try:
        return version("orisun")
    except PackageNotFoundError:
        return "unknown"
