"""The metric families as OpenTelemetry's data: one set of numbers, shown in two ways."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.core import Metric as Family

_UNITS = {"_seconds": "s", "_bytes": "By", "_calls": "{call}", "_events": "{event}", "_connections": "{connection}"}


def metrics_data(families: Iterable[Family], resource: Resource, started_at: int, now: int) -> MetricsData:
    """The families as one export; times are nanoseconds since 1970."""
    metrics = [metric for family in families if (metric := _metric(family, started_at, now)) is not None]
    scope = ScopeMetrics(InstrumentationScope("orisun"), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _metric(family: Family, started_at: int, now: int) -> Metric | None:
    unit = next((unit for ending, unit in _UNITS.items() if family.name.endswith(ending)), "")
    if family.type == "histogram":
        points = _histograms(family, started_at, now)
        if not points:
            return None
        data = Histogram(points, AggregationTemporality.CUMULATIVE)
        return Metric(family.name, family.documentation, unit, data)
    numbers = [
        NumberDataPoint(dict(sample.labels), started_at, now, float(sample.value))
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    if not numbers:
        return None
    if family.type == "counter":
        total = Sum(numbers, AggregationTemporality.CUMULATIVE, is_monotonic=True)
        return Metric(family.name, family.documentation, unit or "1", total)
    return Metric(family.name, family.documentation, unit or "1", Gauge(numbers))


def _histograms(family: Family, started_at: int, now: int) -> list[HistogramDataPoint]:
    buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = defaultdict(list)
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in family.samples:
        key = tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le"))
        if sample.name.endswith("_bucket"):
            buckets[key].append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_sum"):
            sums[key] = sample.value
    points = []
    for key, cumulative in buckets.items():
        below, counts = 0.0, []
        for _, upto in cumulative:
            counts.append(int(upto - below))
            below = upto
        points.append(
            HistogramDataPoint(
                attributes=dict(key),
                start_time_unix_nano=started_at,
                time_unix_nano=now,
                count=int(below),
                sum=sums.get(key, 0.0),
                bucket_counts=counts,
                explicit_bounds=[bound for bound, _ in cumulative[:-1]],
                # the values themselves are not kept; None leaves the fields out
                min=None,  # type: ignore[arg-type]
                max=None,  # type: ignore[arg-type]
            )
        )
    return points
