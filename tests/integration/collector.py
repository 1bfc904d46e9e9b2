"""A small OTLP collector: the real protocol (gRPC), everything kept in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc


class Collector:
    """What exporters have sent."""

    def __init__(self) -> None:
        self.port = 0
        self.spans: list[Any] = []
        self.metrics: dict[str, Any] = {}
        self.resources: list[dict[str, str]] = []

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]

    async def traces(self, request: Any, _: Any) -> Any:
        for one in request.resource_spans:
            self.resources.append({pair.key: pair.value.string_value for pair in one.resource.attributes})
            for scope in one.scope_spans:
                self.spans += scope.spans
        return trace_pb.ExportTraceServiceResponse()

    async def measurements(self, request: Any, _: Any) -> Any:
        for one in request.resource_metrics:
            for scope in one.scope_metrics:
                self.metrics |= {metric.name: metric for metric in scope.metrics}
        return metrics_pb.ExportMetricsServiceResponse()


class _Traces(trace_grpc.TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self.Export = collector.traces


class _Metrics(metrics_grpc.MetricsServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self.Export = collector.measurements


@asynccontextmanager
async def collecting(port: int = 0) -> AsyncIterator[Collector]:
    """A collector that listens on loopback."""
    collector = Collector()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    trace_grpc.add_TraceServiceServicer_to_server(_Traces(collector), server)
    metrics_grpc.add_MetricsServiceServicer_to_server(_Metrics(collector), server)
    collector.port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(0)
