"""A rebuild by several workers: beside live ones, after an interruption, and what it leaves to the partitions."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

import orisun
from orisun.projections import Administration, ProcessorConfig, Progress, ProjectionError
from tests.client.shop import Deposits, Shop, running

ACCOUNTS = [f"a{number}" for number in range(9)]


async def deposit(shop: Shop, first: int, count: int) -> None:
    for amount in range(first, first + count):
        events = [orisun.NewEvent("Deposited", {"account": name, "amount": amount}) for name in ACCOUNTS]
        await shop.boundary.append(events)


class Meeting(Deposits):
    """Its workers meet in ``handle``: where one worked after the other, nobody would come."""

    meeting: asyncio.Barrier | None = None
    came = 0

    async def handle(self, tx: Any, event: orisun.Event) -> None:
        if (meeting := self.meeting) is not None:
            self.came += 1
            if self.came == meeting.parties:
                self.meeting = None  # one more would wait alone
            await asyncio.wait_for(meeting.wait(), 30)
        await super().handle(tx, event)


async def test_a_rebuild_after_a_change_of_the_layout_does_not_go_back(shop: Shop) -> None:
    """The new partitions stand where the slowest of the old ones was, and the read model holds what all have done."""
    view = f"{shop.schema}_view"
    deposits, admin = Deposits(view), Administration(shop.checkpoints, shop.boundary)
    await deposit(shop, 0, 10)
    one = shop.processor(partition_key=0, total_partitions=2)
    async with running(one, deposits):
        await one.caught_up(deposits)
    done = await shop.rows(view)
    assert 0 < len(done) < 10 * len(ACCOUNTS), "the other one never ran"
    await admin.repartition(deposits, ProcessorConfig(total_partitions=1))
    await admin.rebuild(deposits)
    assert set(done) <= set(await shop.rows(view))
    async with running(shop.processor(), deposits) as processor:
        await processor.caught_up(deposits)
    assert sorted(await shop.rows(view)) == sorted((name, amount) for amount in range(10) for name in ACCOUNTS)
    await shop.pool.execute(f'DROP SCHEMA "{view}" CASCADE')


async def test_several_workers_rebuild_and_each_event_is_there_once(shop: Shop) -> None:
    view = f"{shop.schema}_view"
    live, admin = Deposits(view), Administration(shop.checkpoints, shop.boundary)
    await deposit(shop, 0, 60)
    processors = [shop.processor(partition_key=number, total_partitions=2) for number in range(2)]
    working = [asyncio.create_task(processor.run(live)) for processor in processors]
    for processor in processors:
        await processor.caught_up(live)
    progress: list[Progress] = []
    again = Meeting(view)
    again.meeting = asyncio.Barrier(2)
    # interrupted when some is done

    def interrupt(one: Progress) -> None:
        if one.handled >= 60:
            rebuilding.cancel()

    rebuilding = asyncio.create_task(admin.rebuild(again, batch_size=20, partitions=3, on_progress=interrupt))
    with pytest.raises(asyncio.CancelledError):
        await rebuilding
    assert len(await shop.rows(view)) == 60 * len(ACCOUNTS), "the present read model is as it was"
    done_before = len(await shop.rows(f"{view}__next"))
    await deposit(shop, 60, 10)
    done = await admin.rebuild(again, batch_size=20, partitions=2, on_progress=progress.append)
    assert done_before + done.handled == 70 * len(ACCOUNTS), "what was done before is not done again"
    assert [one.done for one in progress] == sorted(one.done for one in progress)
    assert done.percent == 100
    # the live workers go on, each with its own
    await deposit(shop, 70, 5)
    for processor in processors:
        await asyncio.wait_for(processor.caught_up(live), 30)
        processor.stop()
    await asyncio.gather(*working)
    rows = await shop.rows(view)
    for account in ACCOUNTS:
        assert [amount for name, amount in rows if name == account] == list(range(75))
    await shop.pool.execute(f'DROP SCHEMA "{view}" CASCADE')


async def test_a_rebuild_of_what_was_never_started_becomes_the_projection(shop: Shop) -> None:
    view = f"{shop.schema}_view"
    deposits, admin = Deposits(view), Administration(shop.checkpoints, shop.boundary)
    await deposit(shop, 0, 40)
    await admin.rebuild(deposits, partitions=3)
    processor = shop.processor()
    work = asyncio.create_task(processor.run(deposits))
    await deposit(shop, 40, 1)
    await asyncio.wait_for(processor.caught_up(deposits), 30)
    processor.stop()
    await work
    assert len(await shop.rows(view)) == 41 * len(ACCOUNTS)
    await shop.pool.execute(f'DROP SCHEMA "{view}" CASCADE')


async def test_a_worker_that_fails_ends_the_rebuild_and_the_others(shop: Shop, pg_dsn: str) -> None:
    view = f"{shop.schema}_view"
    deposits = Deposits(view)
    deposits.poison = {30}
    await deposit(shop, 0, 40)
    admin = Administration(shop.checkpoints, shop.boundary)
    with pytest.raises(ProjectionError, match="stopped at event"):
        await asyncio.wait_for(admin.rebuild(deposits, partitions=3), 30)
    async with asyncpg.create_pool(pg_dsn, min_size=0, max_size=4) as small:
        with pytest.raises(ProjectionError, match="pool of 5 connections, and this one has 4"):
            await Administration(small, shop.boundary).rebuild(deposits, partitions=3)
    with pytest.raises(orisun.InvalidArgument):
        await admin.rebuild(deposits, partitions=0, config=ProcessorConfig())
    await shop.pool.execute(f'DROP SCHEMA "{view}__next" CASCADE')
