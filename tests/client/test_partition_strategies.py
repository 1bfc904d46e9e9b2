"""Partition strategies of one's own: each event once, also over a change from one strategy to another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

import orisun
from orisun.projections import (
    Administration,
    PartitionMismatch,
    PartitionStrategy,
    ProcessorConfig,
    run_projection_partitions,
)
from tests.client.shop import Deposits, Shop, has, running
from tests.harness import eventually

ACCOUNTS = [f"a{number}" for number in range(8)]


class ByLastDigit:
    name = "last digit"

    def partition(self, key: str | None, total: int) -> int:
        return int(key[-1]) % total if key else 0


class Reversed:
    name = "reversed"

    def partition(self, key: str | None, total: int) -> int:
        return total - 1 - ByLastDigit().partition(key, total)


async def deposit(shop: Shop, first: int, count: int) -> None:
    for amount in range(first, first + count):
        events = [orisun.NewEvent("Deposited", {"account": name, "amount": amount}) for name in ACCOUNTS]
        await shop.boundary.append(events)


async def test_a_strategy_decides_and_may_be_changed(shop: Shop) -> None:
    deposits, admin = Deposits(shop.schema), Administration(shop.checkpoints, shop.boundary)

    def config(strategy: PartitionStrategy, *former: PartitionStrategy, partition: int = 0) -> ProcessorConfig:
        return ProcessorConfig(
            partition_key=partition, total_partitions=2, strategy=strategy, former_strategies=former, batch_size=3
        )

    await deposit(shop, 0, 3)
    settings = config(ByLastDigit())
    async with running(shop.processor(**_fields(settings)), deposits) as processor:
        await processor.caught_up(deposits)
    assert {account for account, _ in await shop.rows()} == {"a0", "a2", "a4", "a6"}, "what the strategy gives it"
    with pytest.raises(PartitionMismatch, match=r"\(last digit\), and this worker is one of 2 \(reversed\)"):
        await shop.processor(**_fields(config(Reversed()))).run(deposits)
    await admin.repartition(deposits, config(Reversed()))
    # what was done under the old one is told by the old one
    with pytest.raises(PartitionMismatch, match="former_strategies"):
        await shop.processor(**_fields(config(Reversed()))).run(deposits)
    stop = asyncio.Event()
    work = asyncio.create_task(
        run_projection_partitions(
            shop.checkpoints, shop.boundary, deposits, 2, config(Reversed(), ByLastDigit()), stop=stop
        )
    )
    await deposit(shop, 3, 2)
    await eventually(has(shop, 5 * len(ACCOUNTS)))
    stop.set()
    processors = await work
    rows = await shop.rows()
    for account in ACCOUNTS:
        assert [amount for name, amount in rows if name == account] == list(range(5))
    assert all(processor.stats.handled for processor in processors)


async def test_the_lag_that_others_see_of_a_quiet_partition_does_not_grow(shop: Shop) -> None:
    """Its worker passes over what is not its own, and says so without having handled anything."""
    deposits, admin = Deposits(shop.schema), Administration(shop.checkpoints, shop.boundary)
    await shop.append(1, 2, 3, account="a0")
    quiet = ProcessorConfig(partition_key=1, total_partitions=2, strategy=ByLastDigit())
    async with running(shop.processor(**_fields(quiet)), deposits) as processor:
        await processor.caught_up(deposits)

        async def lags() -> list[int]:
            return [one.lag.events for one in await admin.status(deposits)]

        assert (await lags())[0] == 3, "nobody works on the other"
        await eventually(lambda: _is(lags, [3, 0]))
        amount = 0

        async def is_told_while_events_come() -> bool:
            # never idle: an event more at each look
            nonlocal amount
            await shop.append(amount, account="a0")
            amount += 1
            return (await lags())[1] < amount - 1

        await eventually(is_told_while_events_come, 10.0, message="that the checkpoint moves")


async def _is(asked: Callable[[], Awaitable[object]], expected: object) -> bool:
    return await asked() == expected


def _fields(config: ProcessorConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in ProcessorConfig.__dataclass_fields__}
