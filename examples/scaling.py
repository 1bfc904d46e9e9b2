"""From one worker to four and back to two, in the middle of the work, with nothing handled twice or left out."""

from __future__ import annotations

import asyncio
import contextlib

from examples.support import place, run, until
from examples.views import Balances, deposit, taken_in
from orisun.projections import (
    Administration,
    PartitionMismatch,
    PostgresCheckpoints,
    ProcessorConfig,
    Tables,
    run_projection_partitions,
)

EVENTS = 1_500


async def main() -> None:
    async with place("bank") as here, here.pool() as pool:
        checkpoints, balances = PostgresCheckpoints(pool, Tables(here.schema)), Balances()
        admin = Administration(checkpoints, here.events)
        stored = 0
        previous: asyncio.Task[object] | None = None
        for workers in (1, 4, 2):
            await deposit(here, EVENTS)
            stored += EVENTS
            if previous is not None:
                # workers of the old layout are fenced off in the middle of their work: they end by themselves
                await admin.repartition(balances, ProcessorConfig(total_partitions=workers))
                with contextlib.suppress(PartitionMismatch):
                    await previous
            stop = asyncio.Event()
            config = ProcessorConfig(batch_size=50)
            working = asyncio.create_task(
                run_projection_partitions(checkpoints, here.events, balances, workers, config, stop=stop)
            )

            async def half(least: int = stored - EVENTS // 2) -> bool:
                return await taken_in(pool) > least

            await until(half, f"{workers} at work")
            previous = working

        async def complete() -> bool:
            return await taken_in(pool) >= stored

        await until(complete, f"all {stored} events are taken in")
        stop.set()
        await working
        print("events in the read model:", await taken_in(pool))
        for one in await admin.status(balances):
            print(f"  partition {one.partition} of {one.total} at {one.position}, behind: {one.lag.events}")
        if await taken_in(pool) != stored:
            raise AssertionError("an event was handled twice")


if __name__ == "__main__":
    run(main)
