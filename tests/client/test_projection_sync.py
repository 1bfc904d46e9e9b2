"""Projections of plain functions: beside asyncio, and without it from plain threads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asyncpg
import pytest

import orisun
from orisun import NewEvent, sync
from orisun.projections import Connection, PoisonPolicy, ProcessorConfig, ProjectionError
from orisun.projections import projection as of_function
from orisun.sync import projections as plain
from orisun_server.settings import Settings
from tests.client.shop import INSERT, TABLE, OfDeposits, Shop, running
from tests.harness import ServerProcess, eventually


class Deposits(OfDeposits):
    """One row for each event, by plain functions."""

    def __init__(self, schema: str) -> None:
        super().__init__(schema)
        self.threads: set[str] = set()

    def setup(self, tx: Connection) -> None:
        tx.execute(TABLE)

    def handle(self, tx: Connection, event: orisun.Event) -> None:
        self.threads.add(threading.current_thread().name)
        with contextlib.suppress(asyncpg.UndefinedTableError), tx.transaction():
            tx.executemany(INSERT, [("undone", 0)])
            tx.execute("SELECT * FROM no_such_table")
        assert tx.fetchval("SELECT count(*) FROM deposit WHERE account = 'undone'") == 0
        row = tx.fetchrow(f"{INSERT} RETURNING amount", *_of(event))
        assert [tuple(row)] == [tuple(one) for one in tx.fetch("SELECT $1::int", row["amount"])]
        if event.data["amount"] in self.poison:
            raise ValueError(f"secret {event.data['amount']}")


def _of(event: orisun.Event) -> tuple[str, int]:
    return event.data["account"], event.data["amount"]


# -- beside asyncio ------------------------------------------------------------------------------------------------


async def test_plain_handlers_run_in_threads_and_share_the_transaction(shop: Shop) -> None:
    deposits = Deposits(shop.schema)
    deposits.poison = {666}
    await shop.append(1, 666, 2)
    policy = PoisonPolicy("park", attempts=1, hold=False)
    async with running(shop.processor(poison=policy), deposits) as processor:
        await processor.caught_up(deposits)
    assert [amount for _, amount in await shop.rows()] == [1, 2], "what a failed handler wrote is undone"
    assert threading.main_thread().name not in deposits.threads


async def test_a_function_is_enough_and_a_coroutine_is_no_result(shop: Shop) -> None:
    seen: list[int] = []

    @of_function("seen", orisun.where("Deposited"))
    def remember(tx: Connection, event: orisun.Event) -> None:
        seen.append(event.data["amount"] + tx.fetchval("SELECT 1"))

    @of_function("wrong", orisun.where("Deposited"))
    def forgot(tx: Connection, event: orisun.Event) -> Any:
        return asyncio.sleep(0)

    await shop.append(1)
    async with running(shop.processor(), remember) as processor:
        await processor.caught_up(remember)
    assert seen == [2]
    with pytest.raises(ProjectionError) as caught:
        await shop.processor(poison=PoisonPolicy(attempts=1)).run(forgot)
    assert "async def" in str(caught.value.__cause__)


async def test_a_cancelled_handler_writes_nothing_any_more(shop: Shop) -> None:
    """Its thread goes on, but not on a connection whose transaction is another's by now."""
    began, going_on = threading.Event(), threading.Event()
    failures: list[Exception] = []

    class Slow(Deposits):
        def handle(self, tx: Connection, event: orisun.Event) -> None:
            began.set()
            assert going_on.wait(30)
            for _ in range(2):
                try:
                    tx.execute("INSERT INTO deposit (account, amount) VALUES ('late', 1)")
                except ProjectionError as error:
                    failures.append(error)

    await shop.append(1)
    work = asyncio.create_task(shop.processor().run(Slow(shop.schema)))
    assert await asyncio.to_thread(began.wait, 30)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    going_on.set()
    await eventually(lambda: len(failures) == 2)
    assert "after the handler's end" in str(failures[0])
    assert await shop.rows() == []


async def test_a_statement_under_way_is_given_up_with_its_handler(shop: Shop) -> None:
    failures: list[Exception] = []

    class Waiting(Deposits):
        def handle(self, tx: Connection, event: orisun.Event) -> None:
            try:
                tx.execute("SELECT pg_sleep(600)")
            except ProjectionError as error:
                failures.append(error)

    await shop.append(1)
    work = asyncio.create_task(shop.processor().run(Waiting(shop.schema)))
    sleeping = "SELECT count(*) = 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'"
    await eventually(lambda: shop.pool.fetchval(sleeping))
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(work, 30)
    await eventually(lambda: len(failures) == 1)
    assert not await shop.pool.fetchval(sleeping)


# -- without asyncio -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def address(make_settings: Callable[..., Settings]) -> AsyncIterator[str]:
    """The address of a server."""
    async with ServerProcess(make_settings()) as process:
        yield process.address


@pytest.fixture
def connected(address: str) -> Iterator[sync.Client]:
    with sync.connect(address, username="admin", password="changeit") as made:
        yield made


@pytest.fixture
def bank(connected: sync.Client) -> sync.Boundary:
    """An empty boundary."""
    name = f"bank_{secrets.token_hex(4)}"
    connected.admin.create_boundary(name, schema="banks")
    return connected.boundary(name)


@pytest.fixture
def view(pg_dsn: str) -> Iterator[tuple[plain.Pool, str]]:
    """Connections to a read model's PostgreSQL, and a schema that is removed."""
    schema = f"view_{secrets.token_hex(4)}"
    with plain.create_pool(pg_dsn, min_size=0, max_size=8) as pool:
        yield pool, schema
        for name in (schema, f"{schema}__tables"):
            pool.execute(f'DROP SCHEMA IF EXISTS "{name}" CASCADE')


@pytest.fixture
def checkpoints(view: tuple[plain.Pool, str]) -> Any:
    pool, schema = view
    pool.execute(f'CREATE SCHEMA "{schema}__tables"')
    return plain.PostgresCheckpoints(pool, plain.Tables(f"{schema}__tables"))


def deposit(bank: sync.Boundary, *amounts: int, account: str = "a") -> orisun.Position:
    return bank.append([NewEvent("Deposited", {"account": account, "amount": amount}) for amount in amounts])


def rows(view: tuple[plain.Pool, str]) -> list[int]:
    pool, schema = view
    return [row["amount"] for row in pool.fetch(f'SELECT amount FROM "{schema}".deposit ORDER BY n')]


def test_a_processor_calls_handlers_in_the_thread_that_runs_it(
    bank: sync.Boundary, view: tuple[plain.Pool, str], checkpoints: Any
) -> None:
    deposits = Deposits(view[1])
    processor = plain.Processor(checkpoints, bank)
    deposit(bank, 1, 2)
    with ThreadPoolExecutor(1, "worker") as threads:
        work = threads.submit(processor.run, deposits)
        processor.caught_up(deposits, deposit(bank, 3))
        assert rows(view) == [1, 2, 3]
        assert processor.lag(deposits).events == 0
        processor.stop()
        work.result(30)
    assert processor.stats.handled == 3
    assert deposits.threads == {"worker_0"}


def test_administration(bank: sync.Boundary, view: tuple[plain.Pool, str], checkpoints: Any) -> None:
    deposits = Deposits(view[1])
    deposits.poison = {666}
    admin = plain.Administration(checkpoints, bank)
    processor = plain.Processor(checkpoints, bank, ProcessorConfig(poison=PoisonPolicy("park", attempts=1)))
    with ThreadPoolExecutor(1) as threads:
        work = threads.submit(processor.run, deposits)
        processor.caught_up(deposits, deposit(bank, 1, 666))
        processor.stop()
        work.result(30)
    assert [one.event_type for one in admin.parked(deposits)] == ["Deposited"]
    deposits.poison = set()
    assert [one.failure for one in admin.replay(deposits)] == [""]
    assert admin.rebuild(deposits, partitions=2).handled == 2
    assert rows(view) == [1, 666]
    admin.repartition(deposits, ProcessorConfig(total_partitions=2))
    assert [one.total for one in admin.status(deposits)] == [2, 2]
    admin.reset(deposits)
    assert rows(view) == []


def test_runners_use_threads_and_stop(bank: sync.Boundary, view: tuple[plain.Pool, str], checkpoints: Any) -> None:
    deposits, stop = Deposits(view[1]), plain.Stop()
    for number in range(20):
        deposit(bank, number, account=f"a{number}")
    watching = plain.Processor(checkpoints, bank)
    with ThreadPoolExecutor(1) as threads:
        work = threads.submit(plain.run_projection_partitions, checkpoints, bank, deposits, 3, stop=stop)
        admin = plain.Administration(checkpoints, bank)
        deadline = threading.Event()
        while sum(one.handled for one in admin.status(deposits)) < 20 and not deadline.wait(0.02):
            assert not work.done()
        stop.set()
        stats = work.result(30)
    assert stop.is_set()
    assert sum(one.handled for one in stats) == 20
    assert sorted(rows(view)) == list(range(20))
    assert watching.stats.handled == 0


def test_a_signal_ends_a_runner_of_the_main_thread(
    bank: sync.Boundary, view: tuple[plain.Pool, str], checkpoints: Any
) -> None:
    deposits = Deposits(view[1])
    deposit(bank, 1)

    class Signalling(Deposits):
        def handle(self, tx: Connection, event: orisun.Event) -> None:
            super().handle(tx, event)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with plain.stop_on_signals() as stop:
        (stats,) = plain.run_multiple_projections(checkpoints, bank, [Signalling(deposits.schema)], stop=stop)
    assert (stats.handled, rows(view)) == (1, [1])
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_a_handler_raises_reaches_who_runs_it(
    bank: sync.Boundary, view: tuple[plain.Pool, str], checkpoints: Any
) -> None:
    deposits = Deposits(view[1])
    deposits.poison = {666}
    deposit(bank, 1, 666)
    config = ProcessorConfig(poison=PoisonPolicy(attempts=1))
    with pytest.raises(ProjectionError, match=r"ValueError at test_projection_sync.py") as caught:
        plain.Processor(checkpoints, bank, config).run(deposits)
    assert isinstance(caught.value.__cause__, ValueError)
    assert rows(view) == [1]

    class Interrupted(Deposits):
        def handle(self, tx: Connection, event: orisun.Event) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plain.Processor(checkpoints, bank).run(Interrupted(view[1]))
    assert rows(view) == [1]
