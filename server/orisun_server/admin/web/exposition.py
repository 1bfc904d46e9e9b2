"""The metrics as Prometheus reads them, written anew so seldom that nobody who asks all the time slows the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from .parts import Parts

#: Seconds for which an answer is good. Hundreds of boundaries take tens of milliseconds, and all may ask.
_GOOD = 0.5


class Exposition:
    """Collects and writes the metrics; those who ask meanwhile wait for the same answer."""

    def __init__(self) -> None:
        self._writing = asyncio.Lock()
        # format -> when it was written, and what
        self._written: dict[str, tuple[float, bytes]] = {}

    async def body(self, parts: Parts, accept: str) -> tuple[bytes, str]:
        """The metrics in the format that the header ``accept`` asks for, and its media type."""
        encoder, media_type = choose_encoder(accept)
        async with self._writing:
            at, body = self._written.get(media_type, (float("-inf"), b""))
            if time.monotonic() - at < _GOOD:
                return body, media_type
            await parts.sampler.fresh()
            registry = CollectorRegistry(auto_describe=False)
            ProcessCollector(registry=registry)
            GCCollector(registry=registry)
            # collected here, in the loop that changes the numbers, family by family; written in a thread: it is long
            families = []
            for family in parts.telemetry.families.collect():
                families.append(family)
                await asyncio.sleep(0)
            registry.register(_Collected(families))
            body = await asyncio.to_thread(encoder, registry)
            now = time.monotonic()
            self._written = {kind: kept for kind, kept in self._written.items() if now - kept[0] < _GOOD}
            self._written[media_type] = (now, body)
            return body, media_type


class _Collected(Collector):
    """Families that were collected before."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
