"""Several projections in one process, each with its own checkpoint, batch size and number of workers."""

from __future__ import annotations

import asyncio
from typing import Any

from examples.support import place, run, until
from examples.views import Balances, deposit, taken_in
from orisun import Event
from orisun.projections import ProcessorConfig, Projection, ProjectionConfig, run_multiple_projections


class Totals(Projection):
    """One number, fast: large batches."""

    name = "totals"

    async def setup(self, tx: Any) -> None:
        await tx.execute("CREATE TABLE total (amount bigint)")
        await tx.execute("INSERT INTO total VALUES (0)")

    async def handle(self, tx: Any, event: Event) -> None:
        await tx.execute("UPDATE total SET amount = amount + $1", event.data["amount"])


async def main() -> None:
    async with place("bank") as here, here.pool() as pool:
        await deposit(here, 1_000)
        stop, balances = asyncio.Event(), Balances()
        configs = [
            ProjectionConfig(Totals(), ProcessorConfig(batch_size=1_000)),
            # slower, so it has two workers
            *(
                ProjectionConfig(balances, ProcessorConfig(batch_size=20, partition_key=number, total_partitions=2))
                for number in range(2)
            ),
        ]
        working = asyncio.create_task(run_multiple_projections(pool, here.events, configs, stop=stop))

        async def complete() -> bool:
            if not await pool.fetchval("SELECT to_regclass('total') IS NOT NULL"):
                return False
            total: int = await pool.fetchval("SELECT amount FROM total")
            return await taken_in(pool) == 1_000 == total

        await until(complete, "both read models have taken in 1000 events")
        stop.set()
        for one, processor in zip(configs, await working, strict=True):
            partition = f"{one.config.partition_key}/{one.config.total_partitions}"
            print(f"  {one.projection.name} {partition}: {processor.stats.batches} batches")


if __name__ == "__main__":
    run(main)
