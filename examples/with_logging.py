"""A look inside: a logger, a report of each batch for metrics, an event that cannot be handled, and what logging costs.

The client takes a logger as well: ``orisun.connect(..., logger=...)`` tells it of appends, conflicts and reads.
"""

from __future__ import annotations

import asyncio
import functools
import io
import logging
import time
import timeit
from typing import Any

from examples.support import Place, place, run
from examples.views import Balances, deposit
from orisun import Event, NewEvent, StandardLogger, where
from orisun.projections import (
    Administration,
    BatchReport,
    PoisonPolicy,
    PostgresCheckpoints,
    Processor,
    ProcessorConfig,
    Tables,
    projection,
)

#: Events that are taken in to see what a transaction costs.
EVENTS = 300


class Careful(Balances):
    """Refuses what makes no sense, until somebody says what to do with it."""

    negative = "refuse"

    async def handle(self, tx: Any, event: Event) -> None:
        if event.data["amount"] < 0 and self.negative == "refuse":
            raise ValueError("a deposit below zero")
        await super().handle(tx, event)


async def cost(here: Place, checkpoints: PostgresCheckpoints) -> None:
    """What one message costs, as a share of the transaction that it is about."""
    await deposit(here, EVENTS)

    @projection("nothing", where("Deposited"))
    async def nothing(tx: Any, event: Event) -> None: ...

    processor = Processor(checkpoints, here.events, ProcessorConfig(batch_size=1))
    began = time.perf_counter()
    working = asyncio.create_task(processor.run(nothing))
    await processor.caught_up(nothing)
    transaction = (time.perf_counter() - began) / processor.stats.batches
    processor.stop()
    await working

    def hook(config: ProcessorConfig) -> None:
        # as it stands wherever the library has something to tell
        if logger := config.logger:
            logger.debug("batch committed", projection="nothing", handled=1, position=str(processor.stats.position))

    off, writing = logging.getLogger("off"), logging.getLogger("writing")
    off.setLevel(logging.ERROR)
    writing.setLevel(logging.DEBUG)
    writing.propagate = False
    writing.addHandler(logging.StreamHandler(io.StringIO()))
    loggers = {"no logger": None, "one that is off": StandardLogger(off), "one that writes": StandardLogger(writing)}
    print("a message costs, of the transaction that it is about:")
    for name, logger in loggers.items():
        config = ProcessorConfig(logger=logger)
        seconds = min(timeit.repeat(functools.partial(hook, config), number=2_000, repeat=5)) / 2_000
        print(f"  {name}: {100 * seconds / transaction:.3f} %")


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
        careful, checkpoints = Careful(), PostgresCheckpoints(pool, Tables(here.schema))
        processor = Processor(checkpoints, here.events, config)
        working = asyncio.create_task(processor.run(careful))
        await processor.caught_up(careful)
        print(f"{handled} events in {processor.stats.batches} batches")
        admin = Administration(checkpoints, here.events)
        for parked in await admin.parked(careful):
            print(f"parked: {parked.event_type} of key {parked.key}, {parked.attempts} attempts: {parked.reason}")
        careful.negative = "accept"
        replayed = [one async for one in admin.replay(careful)]
        print(f"replayed {sum(not one.failure for one in replayed)} of {len(replayed)}, in order")
        processor.stop()
        await working
        for row in await pool.fetch("SELECT account, amount, events FROM balance ORDER BY account"):
            print(f"  {row['account']}: {row['amount']} by {row['events']} events")
        await cost(here, checkpoints)


if __name__ == "__main__":
    run(main)
