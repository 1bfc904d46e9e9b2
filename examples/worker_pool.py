"""A pool of workers in one process: all partitions of a projection, each with its own transaction."""

from __future__ import annotations

import asyncio

from examples.support import place, run, until
from examples.views import Balances, deposit, taken_in
from orisun.projections import ProcessorConfig, run_projection_partitions

WORKERS, EVENTS = 4, 2_000


async def main() -> None:
    async with place("bank") as here, here.pool() as pool:
        await deposit(here, EVENTS)
        stop = asyncio.Event()  # stop_on_signals() gives one that SIGTERM and Ctrl-C set
        working = asyncio.create_task(
            run_projection_partitions(pool, here.events, Balances(), WORKERS, ProcessorConfig(batch_size=50), stop=stop)
        )

        async def complete() -> bool:
            return await taken_in(pool) == EVENTS

        await until(complete, f"{WORKERS} workers have taken in {EVENTS} events, each once")
        stop.set()
        for number, processor in enumerate(await working):
            stats = processor.stats
            print(f"  worker {number}: {stats.handled} handled in {stats.batches} batches, {stats.skipped} of others")


if __name__ == "__main__":
    run(main)
