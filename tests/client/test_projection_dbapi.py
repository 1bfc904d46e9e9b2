"""Projections that write through psycopg and SQLAlchemy: the checkpoint is in their transaction."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import psycopg.rows
import pytest
import sqlalchemy as sa
from sqlalchemy import orm

import orisun
from orisun import NOTHING, NewEvent, sync
from orisun.projections import (
    Administration,
    DbapiCheckpoints,
    PoisonPolicy,
    Processor,
    ProcessorConfig,
    ProjectionError,
    ProjectionStopped,
)
from orisun.sync import projections as plain
from tests.client.shop import OfDeposits, Shop, running
from tests.harness import Connection, eventually


class Base(orm.DeclarativeBase):
    pass


class Deposit(Base):
    """A row for each event; no key that would hide a repetition."""

    __tablename__ = "deposit"
    n: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    account: orm.Mapped[str]
    amount: orm.Mapped[int]


class Plain(OfDeposits):
    """What a handler of either sees."""

    def __init__(self, schema: str) -> None:
        super().__init__(schema)
        self.threads: set[str] = set()
        self.meanwhile: Callable[[Any], object] = lambda tx: None

    def handle(self, tx: Any, event: orisun.Event) -> None:
        self.threads.add(threading.current_thread().name)
        self.write(tx, event.data["account"], event.data["amount"])
        self.meanwhile(tx)
        if event.data["amount"] in self.poison:
            raise ValueError("no")

    def write(self, tx: Any, account: str, amount: int) -> None:
        raise NotImplementedError


class ByPsycopg(Plain):
    def setup(self, tx: psycopg.Connection[Any]) -> None:
        tx.execute("CREATE TABLE deposit (n serial, account text, amount int)")

    def write(self, tx: psycopg.Connection[Any], account: str, amount: int) -> None:
        tx.execute("INSERT INTO deposit (account, amount) VALUES (%s, %s)", (account, amount))


class BySqlAlchemy(Plain):
    def setup(self, tx: orm.Session) -> None:
        Base.metadata.create_all(tx.connection())

    def write(self, tx: orm.Session, account: str, amount: int) -> None:
        tx.add(Deposit(account=account, amount=amount))
        tx.flush()


Kind = type[Plain]


@pytest.fixture(params=[ByPsycopg, BySqlAlchemy])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def checkpoints(kind: Kind, shop: Shop, pg_dsn: str) -> Iterator[DbapiCheckpoints[Any]]:
    """In the transactions of the one or the other."""
    if kind is ByPsycopg:

        def begin() -> contextlib.AbstractContextManager[psycopg.Connection[Any]]:
            # rows as dicts are an application's business, and change nothing
            return psycopg.connect(pg_dsn, row_factory=psycopg.rows.dict_row)

        yield DbapiCheckpoints(begin, lambda connection: connection.cursor(), shop.tables)
        return
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(pg_dsn))
    yield DbapiCheckpoints(
        orm.sessionmaker(engine).begin, lambda session: session.connection().connection.cursor(), shop.tables
    )
    engine.dispose()


async def test_the_checkpoint_is_in_the_transaction_of_the_handler(
    kind: Kind, checkpoints: DbapiCheckpoints[Any], shop: Shop
) -> None:
    deposits = kind(f"{shop.schema}_view")
    deposits.poison = {666}
    config = ProcessorConfig(poison=PoisonPolicy("park", attempts=2, first_pause=0.001))
    await shop.append(1, 2, 666, 3)
    await shop.append(4, account="b")
    async with running(Processor(checkpoints, shop.boundary, config), deposits) as processor:
        await processor.caught_up(deposits)
        assert processor.stats.failures == 2
    assert await shop.rows(deposits.schema) == [("a", 1), ("a", 2), ("b", 4)], "what a failed handler wrote is undone"
    # who looks after it, by the same transactions
    admin = Administration(checkpoints, shop.boundary)
    assert [one.handled for one in await admin.status(deposits)] == [3]
    assert [one.attempts for one in await admin.parked(deposits)] == [2, 0]
    deposits.poison = set()
    assert [one.failure async for one in admin.replay(deposits)] == ["", ""]
    await admin.repartition(deposits, ProcessorConfig(total_partitions=2))
    assert (await admin.rebuild(deposits, partitions=2)).handled == 5
    assert sorted(await shop.rows(deposits.schema)) == [("a", 1), ("a", 2), ("a", 3), ("a", 666), ("b", 4)]
    # asyncpg's checkpoints are the same tables
    assert [one.total for one in await Administration(shop.checkpoints, shop.boundary).status(deposits)] == [2, 2]
    await admin.reset(deposits)
    assert await shop.rows(deposits.schema) == []
    await shop.pool.execute(f'DROP SCHEMA "{deposits.schema}" CASCADE')


async def test_what_is_lost_before_the_commit_is_done_again_and_once(
    kind: Kind, checkpoints: DbapiCheckpoints[Any], shop: Shop
) -> None:
    """The connection ends in the middle of a transaction, which is nobody's fault."""
    deposits = kind(shop.schema)
    broken = threading.Event()

    def end(tx: Any) -> None:
        if not broken.is_set():
            broken.set()
            sql = "SELECT pg_terminate_backend(pg_backend_pid())"
            tx.execute(sql if kind is ByPsycopg else sa.text(sql))

    deposits.meanwhile = end
    await shop.append(1, 2, 3)
    config = ProcessorConfig(poison=PoisonPolicy("stop", attempts=1))
    async with running(Processor(checkpoints, shop.boundary, config), deposits) as processor:
        await processor.caught_up(deposits)
    assert broken.is_set()
    assert [amount for _, amount in await shop.rows()] == [1, 2, 3]


async def test_who_is_cancelled_waits_for_the_handler_and_leaves_nothing_open(
    kind: Kind, checkpoints: DbapiCheckpoints[Any], shop: Shop
) -> None:
    deposits, began, going_on = kind(shop.schema), threading.Event(), threading.Event()

    def wait(tx: Any) -> None:
        began.set()
        assert going_on.wait(30)

    deposits.meanwhile = wait
    await shop.append(1)
    work = asyncio.create_task(Processor(checkpoints, shop.boundary).run(deposits))
    assert await asyncio.to_thread(began.wait, 30)
    work.cancel()
    done, _ = await asyncio.wait([work], timeout=0.2)
    assert not done, "the transaction is not ended under the handler"
    going_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(work, 30)
    assert await shop.rows() == []
    open_ones = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
    await eventually(lambda: _is_zero(shop, open_ones))
    (standing,) = await Administration(checkpoints, shop.boundary).status(deposits)
    assert standing.position == NOTHING


async def _is_zero(shop: Shop, query: str) -> bool:
    return int(await shop.pool.fetchval(query)) == 0


async def test_several_workers_of_one_partition_do_everything_once(
    kind: Kind, checkpoints: DbapiCheckpoints[Any], shop: Shop
) -> None:
    """Two that both believe that the partition is theirs: the second finds the checkpoint moved, and writes nothing."""
    deposits = kind(shop.schema)
    await shop.append(1, 2, 3)
    assignments = [await checkpoints.assign(deposits, shop.boundary.name, ProcessorConfig()) for _ in range(2)]
    events = [event async for event in shop.boundary.read()]
    async with checkpoints.batch(assignments[0], NOTHING) as batch:
        deposits.write(batch.tx, "a", 1)
        await batch.advance(events[0].position, 1)
    with pytest.raises(orisun.OrisunError, match="moved by somebody else"):
        async with checkpoints.batch(assignments[1], NOTHING):
            raise AssertionError("not reached")
    async with running(Processor(checkpoints, shop.boundary), deposits) as processor:
        await processor.caught_up(deposits)
    assert [amount for _, amount in await shop.rows()] == [1, 2, 3]


async def test_a_handler_that_hides_a_failed_statement_is_found_out(
    kind: Kind, checkpoints: DbapiCheckpoints[Any], shop: Shop
) -> None:
    deposits = kind(shop.schema)

    def hide(tx: Any) -> None:
        with contextlib.suppress(psycopg.Error, sa.exc.SQLAlchemyError):
            tx.execute("SELECT * FROM no_such_table" if kind is ByPsycopg else sa.text("SELECT * FROM no_such_table"))

    deposits.meanwhile = hide
    await shop.append(1)
    with pytest.raises(ProjectionStopped, match="InFailedSqlTransaction"):
        await Processor(checkpoints, shop.boundary, ProcessorConfig(poison=PoisonPolicy(attempts=1))).run(deposits)
    assert await shop.rows() == []


async def test_a_connection_without_a_transaction_is_refused(shop: Shop, pg_dsn: str) -> None:
    deposits = ByPsycopg(shop.schema)
    await shop.append(1)

    def begin() -> contextlib.AbstractContextManager[psycopg.Connection[Any]]:
        return psycopg.connect(pg_dsn, autocommit=True)

    @contextlib.contextmanager
    def begin_transaction() -> Iterator[psycopg.Connection[Any]]:
        with begin() as connection, connection.transaction():
            yield connection

    bare = DbapiCheckpoints(begin, lambda connection: connection.cursor(), shop.tables)
    with pytest.raises(ProjectionError, match="without a transaction"):
        await asyncio.wait_for(Processor(bare, shop.boundary).run(deposits), 30)
    ready = DbapiCheckpoints(begin_transaction, lambda connection: connection.cursor(), shop.tables)
    async with running(Processor(ready, shop.boundary), deposits) as processor:
        await processor.caught_up(deposits)
    assert await shop.rows() == [("a", 1)]


@pytest.mark.parametrize("kind", [BySqlAlchemy], indirect=True)
async def test_what_a_session_writes_at_the_commit_is_the_event_s_fault_too(
    kind: Kind, checkpoints: DbapiCheckpoints[Any], shop: Shop
) -> None:
    """Objects that were added and not flushed: they meet their constraints after the handler has returned."""

    class Late(BySqlAlchemy):
        def setup(self, tx: orm.Session) -> None:
            super().setup(tx)
            tx.execute(sa.text("ALTER TABLE deposit ADD CHECK (amount < 600)"))

        def write(self, tx: orm.Session, account: str, amount: int) -> None:
            tx.add(Deposit(account=account, amount=amount))

    await shop.append(1, 666, 2)
    config = ProcessorConfig(poison=PoisonPolicy("park", attempts=1, hold=False))
    late = Late(shop.schema)
    async with running(Processor(checkpoints, shop.boundary, config), late) as processor:
        await processor.caught_up(late)
    assert [amount for _, amount in await shop.rows()] == [1, 2]
    (parked,) = await Administration(checkpoints, shop.boundary).parked(late)
    assert parked.reason.startswith("IntegrityError")


async def test_without_asyncio_all_of_it_happens_in_the_thread_that_runs_the_processor(
    kind: Kind, checkpoints: DbapiCheckpoints[Any], shop: Shop, server: Connection
) -> None:
    """Connections that belong to a thread, as Django's do, are used by no other one."""
    deposits, threads, begin = kind(shop.schema), set[str](), checkpoints._begin

    def watched() -> contextlib.AbstractContextManager[Any]:
        threads.add(threading.current_thread().name)
        return begin()

    def interrupt(tx: Any) -> None:
        raise KeyboardInterrupt

    def work() -> None:
        with (
            sync.connect(server.address, username="admin", password="changeit") as client,
            ThreadPoolExecutor(1, "worker") as pool,
        ):
            bank = client.boundary(shop.boundary.name)
            for amount, meanwhile in enumerate((lambda tx: None, interrupt, lambda tx: None)):
                deposits.meanwhile = meanwhile
                bank.append([NewEvent("Deposited", {"account": "a", "amount": amount})])
                processor = plain.Processor(checkpoints, bank)
                running = pool.submit(processor.run, deposits)
                if meanwhile is interrupt:
                    with pytest.raises(KeyboardInterrupt):
                        running.result(30)
                    continue
                processor.caught_up(deposits)
                processor.stop()
                running.result(30)

    checkpoints._begin = watched
    await asyncio.to_thread(work)
    assert deposits.threads == threads == {"worker_0"}
    assert [amount for _, amount in await shop.rows()] == [0, 1, 2], "what was interrupted was undone, and done again"
