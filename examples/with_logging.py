"""A look inside: a logger, a report of each batch for metrics, and an event that cannot be handled."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from examples.support import place, run
from examples.views import Balances
from orisun import Event, NewEvent
from orisun.projections import (
    Administration,
    BatchReport,
    PoisonPolicy,
    PostgresCheckpoints,
    Processor,
    ProcessorConfig,
    StandardLogger,
    Tables,
)


class Careful(Balances):
    """Refuses what makes no sense, until somebody says what to do with it."""

    negative = "refuse"

    async def handle(self, tx: Any, event: Event) -> None:
        if event.data["amount"] < 0 and self.negative == "refuse":
            raise ValueError("a deposit below zero")
        await super().handle(tx, event)


async def main() -> None:
    # warnings of other libraries are not what this example is about
    logging.basicConfig(level=logging.WARNING, format="%(levelname)-7s %(message)s")
    logger = logging.getLogger("projections")
    logger.setLevel(logging.DEBUG)
    handled = 0

    def on_batch(report: BatchReport) -> None:
        nonlocal handled
        handled += report.handled + report.parked  # here one would count for Prometheus

    async with place("bank") as here, here.pool() as pool:
        for amount in (5, -1, 7):
            await here.events.append([NewEvent("Deposited", {"account": "a", "amount": amount})])
        await here.events.append([NewEvent("Deposited", {"account": "b", "amount": 3})])
        config = ProcessorConfig(
            logger=StandardLogger(logger),
            on_batch=on_batch,
            poison=PoisonPolicy("park", attempts=2, first_pause=0.05),
        )
        projection, checkpoints = Careful(), PostgresCheckpoints(pool, Tables(here.schema))
        processor = Processor(checkpoints, here.events, config)
        working = asyncio.create_task(processor.run(projection))
        await processor.caught_up(projection)
        print(f"{handled} events in {processor.stats.batches} batches")
        admin = Administration(checkpoints, here.events)
        for parked in await admin.parked(projection):
            print(f"parked: {parked.event_type} of key {parked.key}, {parked.attempts} attempts: {parked.reason}")
        projection.negative = "accept"
        replayed = [one async for one in admin.replay(projection)]
        print(f"replayed {sum(not one.failure for one in replayed)} of {len(replayed)}, in order")
        processor.stop()
        await working
        for row in await pool.fetch("SELECT account, amount, events FROM balance ORDER BY account"):
            print(f"  {row['account']}: {row['amount']} by {row['events']} events")


if __name__ == "__main__":
    run(main)
