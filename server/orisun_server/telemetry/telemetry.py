"""All of telemetry, built from a server's parts."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from ..delivery.nats import Nats
from ..delivery.publishers import Publishers
from ..delivery.subscription import Subscriptions
from ..observation import QueryLog, Tracing, Watch
from ..storage.catalog import Catalog
from ..storage.database import Database
from ..storage.group_commit import Appender
from ..storage.insight import Insight
from .families import Families, Health
from .otlp import Otlp
from .sampler import Sampler

if TYPE_CHECKING:
    from ..settings import Settings


def new_watch(settings: Settings) -> Watch:
    """What the parts tell of their work."""
    return Watch(
        queries=QueryLog(settings.slow_query_threshold, ignored=settings.admin_boundary),
        tracing=Tracing(settings.otel_traces_per_second, settings.otel_client_traces_per_second),
    )


class Telemetry:
    """The sampler, the metric families and, where it is wanted, OpenTelemetry's exporters."""

    def __init__(
        self,
        settings: Settings,
        watch: Watch,
        *,
        node_id: str,
        health: Health,
        database: Database,
        catalog: Catalog,
        appender: Appender,
        publishers: Publishers,
        subscriptions: Subscriptions,
        nats: Nats,
    ) -> None:
        self.insight = Insight(database, settings.admin_schema)
        self.sampler = Sampler(self.insight, catalog.active, nats)
        self.families = Families(
            watch=watch,
            health=health,
            appender=appender,
            database=database,
            publishers=publishers,
            subscriptions=subscriptions,
            sampler=self.sampler,
        )
        self._otlp: Otlp | None = None
        if settings.otel_enabled and settings.otel_endpoint:
            self._otlp = Otlp(
                settings.otel_endpoint,
                tracing=watch.tracing,
                collect=self.families.collect,
                refresh=self.sampler.fresh,
                attributes={
                    "service.name": settings.otel_service_name,
                    "service.version": _version(),
                    "service.instance.id": node_id,
                },
                interval=settings.otel_metrics_interval,
            )

    async def start(self) -> None:
        await self.sampler.start()
        if self._otlp is not None:
            await self._otlp.start()

    async def stop(self) -> None:
        if self._otlp is not None:
            await self._otlp.stop()
        await self.sampler.stop()


def _version() -> str:
    try:
        return version("orisun")
    except PackageNotFoundError:
        return "unknown"
