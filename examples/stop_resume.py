"""Stop and go on: a worker is asked to stop, the next one is cancelled in mid-batch, and no event comes twice."""

from __future__ import annotations

import asyncio
import contextlib

from examples.support import place, run, until
from examples.views import Balances, deposit, taken_in
from orisun.projections import Processor, ProcessorConfig

EVENTS = 2_000


async def main() -> None:
    async with place("bank") as here, here.pool() as pool:
        await deposit(here, EVENTS)
        config, balances = ProcessorConfig(batch_size=50), Balances()

        async def at_least(count: int) -> bool:
            return await taken_in(pool) >= count

        processor = Processor(pool, here.events, config)
        working = asyncio.create_task(processor.run(balances))
        await until(lambda: at_least(500), "at work; asked to stop")
        processor.stop()
        await working
        print(f"stopped after {await taken_in(pool)} events, checkpoint {processor.stats.position}")

        working = asyncio.create_task(Processor(pool, here.events, config).run(balances))
        await until(lambda: at_least(1_000), "went on there; cancelled, as a crash would")
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        print(f"the batch in hand was rolled back, with its checkpoint: {await taken_in(pool)} events")

        processor = Processor(pool, here.events, config)
        working = asyncio.create_task(processor.run(balances))
        await until(lambda: at_least(EVENTS), "went on again")
        processor.stop()
        await working
        count = await taken_in(pool)
        print(f"{count} events in the read model, each once")
        if count != EVENTS:
            raise AssertionError("an event was handled twice")


if __name__ == "__main__":
    run(main)
