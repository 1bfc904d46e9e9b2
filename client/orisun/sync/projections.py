"""Projections without asyncio: handlers are plain functions, and methods wait for their result.

    from orisun import sync, where
    from orisun.sync.projections import Processor, Projection, create_pool

    class Balances(Projection):
        name = "balances"
        query = where("Deposited")

        def handle(self, tx, event):
            tx.execute("INSERT INTO ...", event.data["account"], event.data["amount"])

    with sync.connect(...) as client, create_pool("postgresql://...") as pool:
        Processor(pool, client.boundary("bank")).run(Balances())

``tx`` is a ``Connection`` inside the transaction that also moves the checkpoint: exactly once, as in
``orisun.projections``, from where projections, configs and errors are. ``Processor.run`` calls handlers in the thread
that called it; ``run_projection_partitions`` and ``run_multiple_projections`` call them in threads of their own.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from .. import projections as aio
from ..projections import (
    Connection,
    DbapiCheckpoints,
    FileCheckpoints,
    ProcessorConfig,
    Projection,
    ProjectionConfig,
    Stats,
    Tables,
    projection,
)
from .background import LOOP, Caller, Face, blocking, iterating, like
from .client import Boundary

__all__ = [
    "Administration",
    "Connection",
    "DbapiCheckpoints",
    "FileCheckpoints",
    "Pool",
    "PostgresCheckpoints",
    "Processor",
    "ProcessorConfig",
    "Projection",
    "ProjectionConfig",
    "Stop",
    "Tables",
    "create_pool",
    "projection",
    "run_multiple_projections",
    "run_projection_partitions",
    "stop_on_signals",
]


class Pool(Face[Any]):
    """Connections to the read model's PostgreSQL; ``create_pool`` makes it. Any thread may use it."""

    def execute(self, query: str, *arguments: Any) -> str:
        """A statement on a connection of the pool; its status, such as ``INSERT 0 1``."""
        return str(LOOP.run(self.aio.execute(query, *arguments)))

    def fetch(self, query: str, *arguments: Any) -> list[Any]:
        """All rows."""
        return list(LOOP.run(self.aio.fetch(query, *arguments)))

    def fetchrow(self, query: str, *arguments: Any) -> Any:
        """The first row, None where there is none."""
        return LOOP.run(self.aio.fetchrow(query, *arguments))

    def fetchval(self, query: str, *arguments: Any) -> Any:
        """The first value of the first row, None where there is none."""
        return LOOP.run(self.aio.fetchval(query, *arguments))

    def close(self) -> None:
        """Closes the connections, when they are given back."""
        LOOP.run(self.aio.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def create_pool(dsn: str, **options: Any) -> Pool:
    """A pool of ``asyncpg.create_pool``, whose options it takes, in the event loop of ``orisun.sync``.

    Raises what asyncpg raises where PostgreSQL cannot be reached.
    """
    import asyncpg

    async def make() -> Any:
        return await asyncpg.create_pool(dsn, **options)

    return Pool(LOOP.run(make()))


def PostgresCheckpoints(pool: Pool, tables: Tables | None = None) -> aio.PostgresCheckpoints:
    """Checkpoints in tables of other names than the usual ones; see ``orisun.projections.PostgresCheckpoints``."""
    return aio.PostgresCheckpoints(pool.aio, tables)


class Stop(Face[asyncio.Event]):
    """What ends runners when it is set, by any thread and by signal handlers."""

    def __init__(self) -> None:
        super().__init__(asyncio.Event())
        self._flag = threading.Event()

    def set(self) -> None:
        """Finish the batches in hand, and return."""

        async def work() -> None:
            self.aio.set()

        self._flag.set()
        LOOP.submit(work())

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._flag.is_set()


@contextmanager
def stop_on_signals(
    numbers: Iterable[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
) -> Iterator[Stop]:
    """A ``Stop`` that SIGTERM and SIGINT set; the second signal does what it did before. In the main thread only."""
    stop = Stop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before[number])
        stop.set()

    before = {int(number): signal.getsignal(number) for number in numbers}
    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Processor(Face[aio.Processor]):
    __doc__ = (aio.Processor.__doc__ or "").replace("an asyncpg pool", "a ``Pool``")

    def __init__(self, checkpoints: Any, boundary: Boundary, config: ProcessorConfig | None = None) -> None:
        super().__init__(aio.Processor(_checkpoints(checkpoints), boundary.aio, config))

    caught_up = blocking(aio.Processor.caught_up)
    lag = blocking(aio.Processor.lag)

    @property
    def stats(self) -> Stats:
        """What it has done since it was started."""
        return self.aio.stats

    @like(aio.Processor.run)
    def run(self, projection: Projection) -> None:
        Caller().run(self.aio.run(projection))

    @like(aio.Processor.stop)
    def stop(self) -> None:
        async def work() -> None:
            self.aio.stop()

        # not waited for: it may be called by a handler, or by a signal's
        LOOP.submit(work())


class Administration(Face[aio.Administration]):
    __doc__ = aio.Administration.__doc__

    def __init__(self, checkpoints: Any, boundary: Boundary) -> None:
        super().__init__(aio.Administration(_checkpoints(checkpoints), boundary.aio))

    status = blocking(aio.Administration.status)
    parked = blocking(aio.Administration.parked)
    discard = blocking(aio.Administration.discard)
    repartition = blocking(aio.Administration.repartition)
    reset = blocking(aio.Administration.reset)
    replay = iterating(aio.Administration.replay)
    rebuild = blocking(aio.Administration.rebuild)


@like(aio.run_projection_partitions)
def run_projection_partitions(
    checkpoints: Any,
    boundary: Boundary,
    projection: Projection,
    total_partitions: int,
    config: ProcessorConfig | None = None,
    *,
    stop: Stop | None = None,
) -> list[Stats]:
    asked = stop.aio if stop else None
    running = aio.run_projection_partitions(
        _checkpoints(checkpoints), boundary.aio, projection, total_partitions, config, stop=asked
    )
    return [processor.stats for processor in LOOP.run(running)]


@like(aio.run_multiple_projections)
def run_multiple_projections(
    checkpoints: Any,
    boundary: Boundary,
    projections: Sequence[ProjectionConfig | Projection],
    *,
    stop: Stop | None = None,
) -> list[Stats]:
    asked = stop.aio if stop else None
    running = aio.run_multiple_projections(_checkpoints(checkpoints), boundary.aio, projections, stop=asked)
    return [processor.stats for processor in LOOP.run(running)]


def _checkpoints(given: Any) -> Any:
    return given.aio if isinstance(given, Pool) else given
