"""Prometheus metrics of the operator."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """``requests`` tells the requests to the API server by HTTP method, when it is scraped."""

    def __init__(self, requests: Callable[[], dict[str, int]] = dict) -> None:
        self.registry = CollectorRegistry()
        self._reconciles = Counter(
            "orisun_operator_reconciles", "Reconciles, by kind.", ["kind"], registry=self.registry
        )
        self._errors = Counter(
            "orisun_operator_reconcile_errors", "Reconciles that failed, by kind.", ["kind"], registry=self.registry
        )
        self._seconds = Histogram(
            "orisun_operator_reconcile_duration_seconds",
            "How long reconciles took, by kind.",
            ["kind"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._queue = Gauge("orisun_operator_queue", "Resources that wait to be reconciled.", registry=self.registry)
        self._leader = Gauge("orisun_operator_leader", "1 in the replica that works, else 0.", registry=self.registry)
        self.registry.register(_Requests(requests))

    def reconciled(self, kind: str, seconds: float) -> None:
        self._reconciles.labels(kind).inc()
        self._seconds.labels(kind).observe(seconds)

    def failed(self, kind: str, seconds: float) -> None:
        self.reconciled(kind, seconds)
        self._errors.labels(kind).inc()

    def queued(self, count: int) -> None:
        self._queue.set(count)

    def leads(self, leader: bool) -> None:
        self._leader.set(int(leader))


class _Requests(Collector):
    def __init__(self, requests: Callable[[], dict[str, int]]) -> None:
        self._requests = requests

    def collect(self) -> list[Metric]:
        family = CounterMetricFamily(
            "orisun_operator_api_requests", "Requests to the Kubernetes API, by method.", labels=["method"]
        )
        for method, count in self._requests().items():
            family.add_metric([method], count)
        return [family]
