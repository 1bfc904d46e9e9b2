"""Running several workers in one process, until all are asked to stop or one fails."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..boundary import Boundary
from ..errors import refuse
from .config import ProcessorConfig
from .processor import Processor
from .projection import Projection


@dataclass(frozen=True, slots=True)
class ProjectionConfig:
    """A projection and how it is processed."""

    projection: Projection
    config: ProcessorConfig = field(default_factory=ProcessorConfig)


async def run_projection_partitions(
    checkpoints: Any,
    boundary: Boundary,
    projection: Projection,
    total_partitions: int,
    config: ProcessorConfig | None = None,
    *,
    stop: asyncio.Event | None = None,
) -> list[Processor]:
    """Run all partitions of a projection in this process, a worker each, until ``stop`` is set.

    Returns the processors, with their ``stats``. Raises what the first worker raised that failed, after the others have
    finished their batches.
    """
    if total_partitions < 1:
        refuse(f"total_partitions is {total_partitions}; give 1 or more")
    base = config or ProcessorConfig()
    return await run_multiple_projections(
        checkpoints,
        boundary,
        [
            ProjectionConfig(projection, replace(base, partition_key=number, total_partitions=total_partitions))
            for number in range(total_partitions)
        ],
        stop=stop,
    )


async def run_multiple_projections(
    checkpoints: Any,
    boundary: Boundary,
    projections: Sequence[ProjectionConfig | Projection],
    *,
    stop: asyncio.Event | None = None,
) -> list[Processor]:
    """Run several projections at once, each with its own config, until ``stop`` is set; otherwise as above. Raises
    InvalidArgument where there is none, or the same partition of one twice."""
    configs = [one if isinstance(one, ProjectionConfig) else ProjectionConfig(one) for one in projections]
    if not configs:
        refuse("there are no projections to run: give one or more")
    known: set[tuple[str, int]] = set()
    for one in configs:
        if (own := (one.projection.name, one.config.partition_key)) in known:
            refuse(f'partition {own[1]} of projection "{own[0]}" is there twice: the second would stand by for ever')
        known.add(own)
    processors = [Processor(checkpoints, boundary, one.config) for one in configs]
    work = [
        asyncio.create_task(processor.run(one.projection), name=f"projection {one.projection.name}")
        for processor, one in zip(processors, configs, strict=True)
    ]
    asked = asyncio.create_task((stop or asyncio.Event()).wait())
    try:
        pending: set[asyncio.Task[Any]] = set(work)
        while pending and not asked.done():
            done, _ = await asyncio.wait((*pending, asked), return_when=asyncio.FIRST_COMPLETED)
            pending -= done
            if any(task.exception() for task in done if task is not asked):
                break
        for processor in processors:
            processor.stop()
        await asyncio.wait(work)
        for task in work:
            task.result()
    finally:
        asked.cancel()
        await _end(work)
    return processors


@contextlib.asynccontextmanager
async def stop_on_signals(
    numbers: Iterable[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
) -> AsyncIterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set, for ``stop``; the second signal ends the process as usual."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    known = list(numbers)
    for number in known:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield stop
    finally:
        for number in known:
            loop.remove_signal_handler(number)


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
