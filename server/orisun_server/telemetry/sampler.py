"""What has to be asked for: progress of the boundaries and use of JetStream, looked at now and then and remembered.

The memory is what the small charts of the admin page show.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import structlog

from ..delivery.nats import Nats
from ..errors import OrisunError
from ..storage.boundaries import Boundary
from ..storage.insight import Insight, Progress
from ..tasks import end

_log = structlog.get_logger(__name__)

#: Seconds between two looks, and how many are remembered: half an hour.
INTERVAL = 10.0
REMEMBERED = 181


class JetStreamUse(NamedTuple):
    """Use of JetStream by the account, over all its streams."""

    file_bytes: int
    memory_bytes: int
    streams: int


class Sample(NamedTuple):
    """One look; ``at`` is in seconds since 1970."""

    at: float
    #: Number of the next event, by boundary.
    ends: dict[str, int]


class Sampler:
    """Looks every INTERVAL seconds, and at once when somebody asks and the last look is too old."""

    def __init__(self, insight: Insight, boundaries: Callable[[], Sequence[Boundary]], nats: Nats) -> None:
        self._insight, self._boundaries, self.nats = insight, boundaries, nats
        self.progress: dict[str, Progress] = {}
        #: None while JetStream does not answer.
        self.jetstream: JetStreamUse | None = None
        self.samples: deque[Sample] = deque(maxlen=REMEMBERED)
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="telemetry-sampler")

    async def stop(self) -> None:
        if self._task is not None:
            await end([self._task])

    async def fresh(self, seconds: float = 2.0) -> None:
        """Looks unless the last look is younger than that; what cannot be seen now stays as it was."""
        async with self._looking:
            if time.monotonic() - self._looked_at < seconds:
                return
            self._looked_at = time.monotonic()
            try:
                self.progress = await self._insight.progress(self._boundaries())
            except OrisunError as problem:
                _log.debug("progress cannot be read", reason=type(problem).__name__)
            self.jetstream = await self._jetstream()

    def rates(self, boundaries: str | Collection[str]) -> list[float]:
        """Events a second between the looks, the newest last, of a boundary or of several together."""
        names = {boundaries} if isinstance(boundaries, str) else boundaries
        found = []
        samples = list(self.samples)
        for before, after in itertools.pairwise(samples):
            grown = sum(
                max(0, after.ends.get(name, 0) - before.ends.get(name, after.ends.get(name, 0))) for name in names
            )
            found.append(grown / max(after.at - before.at, 0.001))
        return found

    async def _run(self) -> None:
        while True:
            try:
                await self.fresh()
                ends = {name: progress.head.prepare + 1 for name, progress in self.progress.items()}
                self.samples.append(Sample(time.time(), ends))
            except Exception:  # the next look follows
                _log.exception("the server cannot look at itself")
            await asyncio.sleep(INTERVAL)

    async def _jetstream(self) -> JetStreamUse | None:
        if not self.nats.connected:
            return None
        try:
            connection = self.nats.connection
            async with asyncio.timeout(2):
                info = await connection.answer(connection.jetstream.account_info())
        except Exception as problem:  # NATS is not needed for anything here
            _log.debug("JetStream does not tell its use", reason=type(problem).__name__)
            return None
        return JetStreamUse(info.storage, info.memory, info.streams)
