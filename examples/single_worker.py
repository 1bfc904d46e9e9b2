"""One projection, one worker: catch up with what is stored, then follow what comes."""

from __future__ import annotations

import asyncio

from examples.support import place, run
from examples.views import Balances, deposit, taken_in
from orisun import NewEvent
from orisun.projections import Processor, ProcessorConfig


async def main() -> None:
    async with place("bank") as here, here.pool() as pool:
        await deposit(here, 1_000)
        processor, balances = Processor(pool, here.events, ProcessorConfig(batch_size=200)), Balances()
        working = asyncio.create_task(processor.run(balances))

        await processor.caught_up(balances)
        print(f"caught up: {await taken_in(pool)} events in {processor.stats.batches} batches")
        # what one has just stored is waited for by its position, and then read from the read model
        position = await here.events.append([NewEvent("Deposited", {"account": "account-0", "amount": 1})])
        await processor.caught_up(balances, position)
        print("read my own write:", await pool.fetchval("SELECT amount FROM balance WHERE account = 'account-0'"))
        lag = await processor.lag(balances)
        print(
            f"a live event was taken in {processor.stats.age * 1000:.0f} ms after it was stored; behind: {lag.events}"
        )
        processor.stop()
        await working


if __name__ == "__main__":
    run(main)
