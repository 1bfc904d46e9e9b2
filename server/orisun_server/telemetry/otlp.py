"""Traces and metrics over OTLP (gRPC), while a collector listens at ORISUN_OTEL_ENDPOINT.

By default OpenTelemetry is on and the endpoint is this machine's, where mostly nobody listens. So nothing is imported,
no span made and no thread started until the endpoint takes a connection, and all that ends when it does not any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog
from prometheus_client.core import Metric

from ..observation import Tracing
from ..tasks import end

if TYPE_CHECKING:
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

_log = structlog.get_logger(__name__)

#: Seconds between two looks at whether the collector listens, and how long one may take.
LOOK, _PATIENCE = 10.0, 2.0
_DEFAULT_PORT = 4317


class Otlp:
    """Exports what ``tracing`` makes and what ``collect`` gives; ``refresh`` is awaited before each collection."""

    def __init__(
        self,
        endpoint: str,
        *,
        tracing: Tracing,
        collect: Callable[[], Iterable[Metric]],
        refresh: Callable[[], Awaitable[None]],
        attributes: dict[str, str],
        interval: float = 60.0,
    ) -> None:
        """``attributes`` are those of the resource (``service.name`` ...); ``interval`` is that of metrics."""
        self._url = endpoint if "://" in endpoint else f"http://{endpoint}"
        #: As the log may name it: without user and password, should somebody write them there.
        self._shown = urlsplit(self._url).netloc.rpartition("@")[2]
        self._tracing, self._collect, self._refresh = tracing, collect, refresh
        self._attributes, self._interval = attributes, interval
        self._started_at = time.time_ns()
        self._provider: TracerProvider | None = None
        self._exporter: OTLPMetricExporter | None = None
        self._resource: Resource | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to look for the collector; does not wait for it."""
        # what exporters say of a collector that is away is said here, once
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._task = asyncio.create_task(self._run(), name="otlp")

    async def stop(self) -> None:
        """Sends what is left, for a second or two at most."""
        if self._task is not None:
            await end([self._task])
            try:
                await self._export()
            except Exception as problem:  # a server that stops is not held up by this
                _log.warning("the last metrics could not be sent", reason=type(problem).__name__)
        await self._off()

    async def _run(self) -> None:
        export_at = 0.0
        while True:
            try:
                if not await self._listens():
                    await self._off()
                elif self._provider is None:
                    await asyncio.to_thread(self._on)
                    export_at = time.monotonic() + min(self._interval, LOOK)
                if self._provider is not None and time.monotonic() >= export_at:
                    export_at = time.monotonic() + self._interval
                    await self._export()
            except Exception as problem:  # telemetry never ends a server, and the next look follows
                _log.warning("OpenTelemetry failed", reason=type(problem).__name__, endpoint=self._shown)
            await asyncio.sleep(min(LOOK, self._interval))

    async def _listens(self) -> bool:
        parts = urlsplit(self._url)
        try:
            async with asyncio.timeout(_PATIENCE):
                _, writer = await asyncio.open_connection(parts.hostname, parts.port or _DEFAULT_PORT)
        except (OSError, ValueError):
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True

    def _on(self) -> None:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        self._resource = Resource.create(self._attributes)
        # whether a call is traced was decided before its span is made
        provider = TracerProvider(resource=self._resource, sampler=ALWAYS_ON, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=self._url, timeout=5)
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1_000))
        self._exporter = OTLPMetricExporter(endpoint=self._url, timeout=5)
        self._provider = provider
        self._tracing.tracer = provider.get_tracer("orisun")
        _log.info("OpenTelemetry is on", endpoint=self._shown)

    async def _off(self) -> None:
        self._tracing.tracer = None
        provider, exporter = self._provider, self._exporter
        self._provider = self._exporter = None
        if provider is None or exporter is None:
            return
        _log.info("OpenTelemetry is off", endpoint=self._shown)

        def shut_down() -> None:
            provider.force_flush(2_000)
            provider.shutdown()
            exporter.shutdown()

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                await asyncio.to_thread(shut_down)

    async def _export(self) -> None:
        exporter, resource = self._exporter, self._resource
        if exporter is None or resource is None:
            return
        from .otlp_metrics import metrics_data  # half a second of imports, which only who exports pays

        await self._refresh()
        # in the loop that changes the numbers, family by family: hundreds of boundaries take a while
        families = []
        for family in self._collect():
            families.append(family)
            await asyncio.sleep(0)

        def work() -> None:
            exporter.export(metrics_data(families, resource, self._started_at, time.time_ns()))

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(6):
                await asyncio.to_thread(work)
