"""Projections against a real server and read model: exactly once, poison, repartitioning, reset and rebuild."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import pytest

import orisun
from orisun.projections import (
    Administration,
    Assignment,
    BatchReport,
    NotParked,
    PartitionMismatch,
    PoisonPolicy,
    PostgresCheckpoints,
    Processor,
    ProcessorConfig,
    Projection,
    ProjectionConfig,
    ProjectionError,
    ProjectionStopped,
    Tables,
    VersionMismatch,
    by_key,
    projection,
    run_multiple_projections,
    run_projection_partitions,
)
from orisun_server.settings import Settings
from tests.client.relay import Relay
from tests.client.shop import Deposits, Shop, exists, has, running
from tests.harness import Connection, eventually, is_quick

# -- following -----------------------------------------------------------------------------------------------------


async def test_what_is_stored_and_what_comes(shop: Shop) -> None:
    await shop.append(1, 2, 3)
    await shop.append(99, event_type="Ignored")
    deposits = Deposits(shop.schema)
    async with running(shop.processor(), deposits) as processor:
        await eventually(lambda: processor.stats.handled == 3)
        await shop.append(4)
        await asyncio.wait_for(processor.caught_up(deposits, shop.appended[-1]), 30)
        assert processor.stats.handled == 4
        await shop.append(98, event_type="Ignored")
        # what it does not want is waited for neither
        await asyncio.wait_for(processor.caught_up(deposits, shop.appended[-1]), 30)
        await asyncio.wait_for(processor.caught_up(deposits), 30)
        assert (await processor.lag(deposits)).events == 0
    assert [amount for _, amount in await shop.rows()] == [1, 2, 3, 4]
    await shop.append(5, 6)
    lag = await processor.lag(deposits)
    assert lag.events == 2
    assert lag.seconds >= 0
    # a new worker goes on where that one was
    async with running(shop.processor(), deposits) as processor:
        await eventually(lambda: processor.stats.handled == 2)
    assert [amount for _, amount in await shop.rows()] == [1, 2, 3, 4, 5, 6]


async def test_a_new_event_wakes_it_and_the_store_is_not_polled(shop: Shop, server: Connection) -> None:
    looks: list[float] = []

    class Watched(PostgresCheckpoints):
        async def look(self, assignment: Assignment, position: orisun.Position) -> None:
            looks.append(time.monotonic())
            await super().look(assignment, position)

    async with (
        Relay(server.address) as relay,
        orisun.connect(relay.address, username="admin", password="changeit") as client,
    ):
        boundary = client.boundary(shop.boundary.name)
        processor = Processor(Watched(shop.pool, shop.tables), boundary)
        async with running(processor, Deposits(shop.schema)):
            await shop.append(1)
            await eventually(lambda: processor.stats.handled == 1)
            rpcs, batches = relay.rpcs, processor.stats.batches
            assert rpcs > 0
            looks.clear()
            # all that an idle worker does is a look at its checkpoint every two seconds, in the read model's database
            await eventually(lambda: len(looks) == 3)
            assert (relay.rpcs, processor.stats.batches) == (rpcs, batches)
            assert all(later - before > 1.9 for before, later in itertools.pairwise(looks))

            async def wakes() -> float:
                count, began = processor.stats.handled, time.monotonic()
                await shop.append(2)
                await eventually(lambda: processor.stats.handled == count + 1, interval=0.002)
                return time.monotonic() - began

            await is_quick(wakes, 1)
            assert relay.rpcs == rpcs


async def test_two_workers_of_one_partition_do_everything_once(shop: Shop) -> None:
    deposits = Deposits(shop.schema)
    async with running(shop.processor(batch_size=3), deposits) as one:
        await shop.append(*range(10))
        await eventually(lambda: one.stats.handled == 10)
        async with running(shop.processor(batch_size=3), deposits) as two:
            await eventually(lambda: two.stats.standby)
            one.stop()
            await shop.append(*range(10, 20))
            await eventually(lambda: one.stats.handled + two.stats.handled == 20)
    assert [amount for _, amount in await shop.rows()] == list(range(20))


async def test_projections_of_one_name_in_two_databases_do_not_know_each_other(shop: Shop) -> None:
    elsewhere = PostgresCheckpoints(shop.pool, Tables(shop.schema, "others", "others_at", "others_parked"))
    seen: list[int] = []

    @projection("deposits", orisun.where("Deposited"))
    async def remember(tx: Any, event: orisun.Event) -> None:
        seen.append(event.data["amount"])

    deposits = Deposits(shop.schema)
    await shop.append(1)
    async with (
        running(shop.processor(), deposits) as one,
        running(Processor(elsewhere, shop.boundary), remember) as two,
    ):
        await asyncio.wait_for(asyncio.gather(one.caught_up(deposits), two.caught_up(remember)), 30)
        assert not two.stats.standby
    assert (seen, await shop.rows()) == ([1], [("a", 1)])


async def test_a_worker_that_was_overtaken_writes_nothing(shop: Shop) -> None:
    deposits = Deposits(shop.schema)
    await shop.append(1, 2)
    async with running(shop.processor(), deposits) as processor:
        await eventually(lambda: processor.stats.handled == 2)
        # another worker, of which the server knows nothing, has done the next one already
        await shop.pool.execute(
            f"UPDATE {shop.tables.q(shop.tables.checkpoints)} SET commit_position = 3, prepare_position = 2"
        )
        await shop.append(3)
        await shop.append(4)
        await eventually(lambda: processor.stats.handled == 3)
    assert [amount for _, amount in await shop.rows()] == [1, 2, 4]


async def test_functions_are_projections_and_config_is_checked(shop: Shop) -> None:
    seen: list[int] = []

    @projection("seen", orisun.where("Deposited"))
    async def remember(tx: Any, event: orisun.Event) -> None:
        seen.append(event.data["amount"])

    reports: list[BatchReport] = []
    await shop.append(1)
    await shop.append(2)
    async with running(shop.processor(start_after=shop.appended[0], on_batch=reports.append), remember) as processor:
        await eventually(lambda: processor.stats.handled == 1)
    assert seen == [2]
    assert [(report.handled, report.position) for report in reports] == [(1, shop.appended[1])]
    with pytest.raises(orisun.InvalidArgument, match="partition_key is 4 of 4"):
        ProcessorConfig(partition_key=4, total_partitions=4)
    with pytest.raises(orisun.InvalidArgument, match="cannot name a table"):
        Tables(schema='x"; DROP TABLE y').ddl()


async def test_multiple_projections_and_their_tables(shop: Shop) -> None:
    names = Tables(shop.schema, projections="views", checkpoints="views_at", parked="views_parked")
    counts: dict[str, int] = {"one": 0, "two": 0}

    class Counting(Projection):
        def __init__(self, name: str) -> None:
            self.name = name

        async def handle(self, tx: Any, event: orisun.Event) -> None:
            counts[self.name] += 1

    await shop.append(1, 2, 3)
    stop = asyncio.Event()
    configs = [ProjectionConfig(Counting("one"), ProcessorConfig(batch_size=1)), Counting("two")]
    work = asyncio.create_task(
        run_multiple_projections(PostgresCheckpoints(shop.pool, names), shop.boundary, configs, stop=stop)
    )
    await eventually(lambda: counts == {"one": 3, "two": 3})
    stop.set()
    processors = await work
    assert processors[0].stats.batches == 3
    assert await shop.pool.fetchval(f'SELECT count(*) FROM "{shop.schema}".views_at') == 2


async def test_when_one_projection_fails_the_others_finish_what_they_have_in_hand(shop: Shop) -> None:
    began, finished = asyncio.Event(), asyncio.Event()

    class Slow(Projection):
        name = "slow"

        async def handle(self, tx: Any, event: orisun.Event) -> None:
            began.set()
            await asyncio.wait([task for task in asyncio.all_tasks() if task.get_name() == "projection failing"])
            await tx.execute("SELECT 1")  # meanwhile all are asked to stop
            finished.set()

    @projection("failing")
    async def fail(tx: Any, event: orisun.Event) -> None:
        await began.wait()
        raise ValueError

    await shop.append(1)
    config = ProcessorConfig(poison=PoisonPolicy(attempts=1))
    with pytest.raises(ProjectionStopped, match="failing"):
        await run_multiple_projections(shop.checkpoints, shop.boundary, [ProjectionConfig(fail, config), Slow()])
    assert finished.is_set()
    rows = await shop.pool.fetch(f"SELECT projection, handled FROM {shop.tables.q(shop.tables.checkpoints)} ORDER BY 1")
    assert [tuple(row) for row in rows] == [("failing", 0), ("slow", 1)]


# -- partitions ----------------------------------------------------------------------------------------------------


async def test_partitions_keep_the_order_of_each_key(shop: Shop) -> None:
    deposits, stop = Deposits(shop.schema), asyncio.Event()
    work = asyncio.create_task(
        run_projection_partitions(
            shop.checkpoints, shop.boundary, deposits, 4, ProcessorConfig(batch_size=5), stop=stop
        )
    )
    for amount in range(20):
        await shop.boundary.append(
            [orisun.NewEvent("Deposited", {"account": f"a{n}", "amount": amount}) for n in range(6)]
        )
    await eventually(lambda: exists(shop))
    await eventually(has(shop, 120))
    stop.set()
    processors = await work
    rows = await shop.rows()
    assert len(rows) == 120
    for account in {account for account, _ in rows}:
        assert [amount for name, amount in rows if name == account] == list(range(20))
    assert sum(1 for processor in processors if processor.stats.handled) > 1


async def test_repartitioning_does_everything_once(shop: Shop) -> None:
    """1 to 4 to 3, each time with partitions at different places."""
    deposits = Deposits(shop.schema)
    admin = Administration(shop.checkpoints, shop.boundary)
    accounts = [f"a{n}" for n in range(12)]

    async def deposit(first: int, count: int) -> None:
        for amount in range(first, first + count):
            events = [orisun.NewEvent("Deposited", {"account": name, "amount": amount}) for name in accounts]
            await shop.boundary.append(events)

    await deposit(0, 5)
    async with running(shop.processor(batch_size=7), deposits) as processor:
        await eventually(lambda: processor.stats.handled >= 21)  # it may stop in the middle
    with pytest.raises(PartitionMismatch, match="laid out for 1 partitions"):
        await shop.processor(partition_key=0, total_partitions=4).run(deposits)
    await admin.repartition(deposits, ProcessorConfig(total_partitions=4))
    # two of four go far ahead
    for partition in (0, 2):
        async with running(
            shop.processor(batch_size=7, partition_key=partition, total_partitions=4), deposits
        ) as processor:
            await eventually(lambda processor=processor: processor.stats.position == (60, 59))
    await deposit(5, 2)
    async with running(shop.processor(partition_key=1, total_partitions=4), deposits) as processor:
        await eventually(lambda: processor.stats.position == (84, 83))
    stop = asyncio.Event()
    config = ProcessorConfig(batch_size=7, repartition=True)
    work = asyncio.create_task(
        run_projection_partitions(shop.checkpoints, shop.boundary, deposits, 3, config, stop=stop)
    )
    await eventually(has(shop, 84))
    stop.set()
    await work
    rows = await shop.rows()
    assert len(rows) == 84
    for account in accounts:
        assert [amount for name, amount in rows if name == account] == list(range(7))


async def test_an_old_worker_is_fenced_when_the_layout_changes(shop: Shop) -> None:
    deposits = Deposits(shop.schema)
    await shop.append(1)
    processor = shop.processor()
    work = asyncio.create_task(processor.run(deposits))
    await eventually(lambda: processor.stats.handled == 1)
    await Administration(shop.checkpoints, shop.boundary).repartition(deposits, ProcessorConfig(total_partitions=2))
    with pytest.raises(PartitionMismatch, match="laid out for 2 partitions"):
        await asyncio.wait_for(work, 30)
    assert [amount for _, amount in await shop.rows()] == [1]


@pytest.mark.parametrize("answer", [4, -1, None, True, KeyError("secret")])
async def test_a_partition_strategy_that_names_no_partition_ends_the_worker(shop: Shop, answer: Any) -> None:
    class Own:
        name = "own"

        def partition(self, key: str | None, total: int) -> int:
            if isinstance(answer, Exception):
                raise answer
            return answer  # type: ignore[no-any-return]

    await shop.append(1)
    with pytest.raises(ProjectionError, match='the partition strategy "own"') as refused:
        await asyncio.wait_for(shop.processor(total_partitions=4, strategy=Own()).run(Deposits(shop.schema)), 30)
    assert "secret" not in str(refused.value)


async def test_what_cannot_be_run_is_refused(shop: Shop) -> None:
    deposits = Deposits(shop.schema)
    run = run_multiple_projections
    with pytest.raises(orisun.InvalidArgument, match="no projections"):
        await run(shop.checkpoints, shop.boundary, [])
    with pytest.raises(orisun.InvalidArgument, match='partition 0 of projection "deposits" is there twice'):
        await run(shop.checkpoints, shop.boundary, [deposits, ProjectionConfig(Deposits(shop.schema))])
    with pytest.raises(orisun.InvalidArgument, match="total_partitions is 0"):
        await run_projection_partitions(shop.checkpoints, shop.boundary, deposits, 0)
    for name, wrong in (("a\0b", "NUL"), ("x" * 101, "101 characters; up to 100")):
        with pytest.raises(orisun.InvalidArgument, match=wrong):
            await shop.processor().run(projection(name)(deposits.handle))
    longest = projection("x" * 100)(deposits.handle)
    longest.schema = f"{shop.schema}_view"
    longest.setup = deposits.setup  # type: ignore[method-assign]
    await shop.append(1)
    admin = Administration(shop.checkpoints, shop.boundary)
    assert (await admin.rebuild(longest)).handled == 1
    await shop.pool.execute(f'DROP SCHEMA "{longest.schema}" CASCADE')


# -- poison --------------------------------------------------------------------------------------------------------


async def test_stop_names_the_event_and_never_its_data(shop: Shop) -> None:
    deposits = Deposits(shop.schema)
    deposits.poison = {666}
    await shop.append(1, 2, 666, 4)
    stopping = shop.processor(poison=PoisonPolicy("stop", attempts=2, first_pause=0.01))
    waiting = asyncio.create_task(stopping.caught_up(deposits))
    with pytest.raises(ProjectionStopped) as caught:
        await stopping.run(deposits)
    with pytest.raises(ProjectionError, match="ended before it reached"):
        await asyncio.wait_for(waiting, 30)
    assert deposits.failures == 3  # once in the batch
    assert caught.value.position == (4, 2)
    assert "ValueError" in str(caught.value)
    assert "666" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)
    assert [amount for _, amount in await shop.rows()] == [1, 2], "what came before is kept, what it wrote is not"
    deposits.poison = set()
    async with running(shop.processor(), deposits) as processor:
        await eventually(lambda: processor.stats.handled == 2)
    assert [amount for _, amount in await shop.rows()] == [1, 2, 666, 4]


async def test_parked_events_are_replayed_in_the_order_of_their_key(shop: Shop) -> None:
    deposits = Deposits(shop.schema)
    deposits.poison = {666}
    admin = Administration(shop.checkpoints, shop.boundary)
    await shop.append(1, 666, 2, account="a")
    await shop.append(10, account="b")
    policy = PoisonPolicy("park", attempts=2, first_pause=0.01)
    async with running(shop.processor(poison=policy), deposits) as processor:
        await eventually(lambda: processor.stats.parked == 2)
        await eventually(lambda: processor.stats.handled == 2)
        assert await shop.rows() == [("a", 1), ("b", 10)]
        first, second = await admin.parked(deposits)
        assert (first.key, first.attempts, second.attempts) == ("a", 2, 0)
        assert "ValueError" in first.reason
        assert "secret" not in first.reason
        # what comes later waits too, while others go on
        await shop.append(3, account="a")
        await shop.append(11, account="b")
        await eventually(lambda: processor.stats.handled == 3)
        with pytest.raises(NotParked, match="waits behind"):
            _ = [one async for one in admin.replay(deposits, [second.event_id])]
        failed = [one async for one in admin.replay(deposits)]
        assert [bool(one.failure) for one in failed] == [True, True, True]
        deposits.poison = set()
        assert [one.failure async for one in admin.replay(deposits)] == ["", "", ""]
        await shop.append(4, account="a")
        await eventually(has(shop, 7))
        assert await admin.parked(deposits) == []
    assert [amount for name, amount in await shop.rows() if name == "a"] == [1, 666, 2, 3, 4]
    assert [amount for name, amount in await shop.rows() if name == "b"] == [10, 11]


async def test_discarded_events_hold_nothing_up(shop: Shop) -> None:
    deposits = Deposits(shop.schema)
    deposits.poison = {666}
    admin = Administration(shop.checkpoints, shop.boundary)
    await shop.append(666)
    policy = PoisonPolicy("park", attempts=1)
    async with running(shop.processor(poison=policy), deposits) as processor:
        await eventually(lambda: processor.stats.parked == 1)
        (parked,) = await admin.parked(deposits)
        assert await admin.discard(deposits, [parked.event_id]) == 1
        await shop.append(1)
        await eventually(lambda: processor.stats.handled == 1)
        with pytest.raises(NotParked, match=parked.event_id):
            await admin.discard(deposits, [parked.event_id])


async def test_another_release_does_not_replay_into_the_read_model(shop: Shop) -> None:
    deposits = Deposits(shop.schema)
    deposits.poison = {666}
    admin = Administration(shop.checkpoints, shop.boundary)
    await shop.append(666)
    async with running(shop.processor(poison=PoisonPolicy("park", attempts=1)), deposits) as processor:
        await processor.caught_up(deposits)
    other = Deposits(shop.schema)
    other.version = 2
    with pytest.raises(VersionMismatch, match="of version 1, and this worker of version 2"):
        _ = [one async for one in admin.replay(other)]
    assert await shop.rows() == []
    (parked,) = await admin.parked(deposits)
    assert await admin.discard(other, [parked.event_id]) == 1


async def test_a_plain_handler_that_raises_stop_iteration_is_poison_too(shop: Shop) -> None:
    @projection("plain", orisun.where("Deposited"))
    def handle(tx: Any, event: orisun.Event) -> None:
        next(iter([]))

    await shop.append(1)
    with pytest.raises(ProjectionStopped, match="RuntimeError"):
        await asyncio.wait_for(shop.processor(poison=PoisonPolicy(attempts=1)).run(handle), 30)


async def test_a_payload_that_cannot_be_decoded_is_an_event_to_park(
    server: Connection, shop: Shop, settings: Settings
) -> None:
    @dataclass
    class Deposited:
        account: str
        amount: int

    types = orisun.EventTypes()
    types.register(Deposited)
    await shop.boundary.append([orisun.NewEvent("Deposited", {"account": "a"})])
    await shop.append(2, account="b")
    await shop.append(3, account="a")
    seen: list[object] = []

    class Typed(Projection):
        name = "typed"
        query = orisun.where("Deposited")
        key_of = by_key("account")  # type: ignore[assignment]

        async def handle(self, tx: Any, event: orisun.Event) -> None:
            seen.append(event.data)

    remember = Typed()
    async with orisun.connect(server.address, username="admin", password="changeit", types=types) as typed:
        policy = PoisonPolicy("park", attempts=1)
        boundary = typed.boundary(settings.boundaries[0].name)
        processor = Processor(shop.checkpoints, boundary, ProcessorConfig(poison=policy))
        async with running(processor, remember):
            await processor.caught_up(remember)
            assert processor.stats.parked == 2, "what follows it waits"
    assert seen == [Deposited("b", 2)]


async def test_retry_goes_on_until_it_works(shop: Shop) -> None:
    deposits = Deposits(shop.schema)
    deposits.poison = {666}
    await shop.append(666, 1)
    policy = PoisonPolicy("retry", attempts=1, first_pause=0.001, longest_pause=0.01)
    async with running(shop.processor(poison=policy), deposits) as processor:
        await eventually(lambda: processor.stats.failures > 5)
        deposits.poison = set()
        await processor.caught_up(deposits)
    assert [amount for _, amount in await shop.rows()] == [666, 1]
    # one that is never mended does not keep a worker from stopping
    deposits.poison = {2}
    await shop.append(2)
    async with running(shop.processor(poison=replace(policy, longest_pause=60, first_pause=60)), deposits) as processor:
        await eventually(lambda: processor.stats.failures == 1)


async def test_a_handler_that_hides_a_failed_statement_is_found_out(shop: Shop) -> None:
    @projection("hiding", orisun.where("Deposited"))
    async def hide(tx: Any, event: orisun.Event) -> None:
        with contextlib.suppress(asyncpg.UndefinedTableError):
            await tx.execute("INSERT INTO no_such_table VALUES (1)")

    await shop.append(1)
    with pytest.raises(ProjectionStopped, match="InFailedSQLTransactionError"):
        await shop.processor(poison=PoisonPolicy(attempts=1)).run(hide)
    with pytest.raises(orisun.InvalidArgument, match="has no name"):
        await shop.processor().run(projection("")(hide))


async def test_what_only_the_commit_finds_out_is_the_event_s_fault_too(shop: Shop) -> None:
    class Once(Deposits):
        async def setup(self, tx: Any) -> None:
            await super().setup(tx)
            await tx.execute("ALTER TABLE deposit ADD UNIQUE (amount) DEFERRABLE INITIALLY DEFERRED")

    deposits = Once(shop.schema)
    await shop.append(1, 2, 1, 3)
    config = {"poison": PoisonPolicy("park", attempts=1, hold=False)}
    async with running(shop.processor(**config), deposits) as processor:
        await processor.caught_up(deposits)
    assert [amount for _, amount in await shop.rows()] == [1, 2, 3]
    (parked,) = await Administration(shop.checkpoints, shop.boundary).parked(deposits)
    assert (parked.position, "UniqueViolationError" in parked.reason) == ((4, 2), True)


async def test_the_database_away_is_no_poison(shop: Shop) -> None:
    deposits = Deposits(shop.schema)
    async with running(shop.processor(poison=PoisonPolicy("stop", attempts=1)), deposits) as processor:
        await shop.append(1)
        await eventually(lambda: processor.stats.handled == 1)
        for connection in range(3):
            await shop.pool.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND query LIKE '%orisun_projection_checkpoint%'"
            )
            await shop.append(2 + connection)
        await eventually(lambda: processor.stats.handled == 4)
    assert [amount for _, amount in await shop.rows()] == [1, 2, 3, 4]


async def test_a_handler_that_runs_out_of_time_or_loses_each_transaction_is_poison(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orisun.projections.batches._FIRST_PAUSE", 0.001)

    class Heavy(Deposits):
        async def handle(self, tx: Any, event: orisun.Event) -> None:
            await super().handle(tx, event)
            if event.data["amount"] == 100:
                await tx.execute("SET LOCAL statement_timeout = 20; SELECT pg_sleep(60)")
            if event.data["amount"] == 200:  # as of a query that brings its backend down
                await tx.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    heavy = Heavy(shop.schema)
    await shop.append(1, 100, 2, 200, 3)
    config = {"poison": PoisonPolicy("park", attempts=1, hold=False)}
    async with running(shop.processor(**config), heavy) as processor:
        await asyncio.wait_for(processor.caught_up(heavy), 30)
    assert [amount for _, amount in await shop.rows()] == [1, 2, 3]
    timed_out, lost = await Administration(shop.checkpoints, shop.boundary).parked(heavy)
    assert "57014" in timed_out.reason
    assert lost.attempts == 1


async def test_a_pool_that_is_closed_ends_the_worker_and_a_database_that_is_away_is_told_of(
    shop: Shop, pg_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = await asyncpg.create_pool(pg_dsn, min_size=0, max_size=2)
    await pool.close()
    with pytest.raises(asyncpg.InterfaceError, match="pool is closed"):
        await asyncio.wait_for(Processor(pool, shop.boundary).run(Deposits(shop.schema)), 30)
    async with asyncpg.create_pool("postgresql://127.0.0.1:1/nowhere", min_size=0) as nowhere:
        work = asyncio.create_task((processor := Processor(nowhere, shop.boundary)).run(Deposits(shop.schema)))
        await eventually(lambda: 'projection "deposits": the database is away' in caplog.text)
        processor.stop()
        await work


# -- reset and rebuild ---------------------------------------------------------------------------------------------


async def test_reset_begins_again_while_a_worker_runs(shop: Shop) -> None:
    deposits = Deposits(f"{shop.schema}_view")
    shop_rows = lambda: shop.rows(deposits.schema)  # noqa: E731
    await shop.append(1, 2, 3)
    async with running(shop.processor(), deposits) as processor:
        await eventually(lambda: processor.stats.handled == 3)
        await Administration(shop.checkpoints, shop.boundary).reset(deposits)
        # nothing is appended that would show the worker that it stands elsewhere
        await asyncio.wait_for(processor.caught_up(deposits, shop.appended[-1]), 30)
        assert [amount for _, amount in await shop_rows()] == [1, 2, 3]
        await Administration(shop.checkpoints, shop.boundary).reset(deposits)
        await eventually(has(shop, 3, deposits.schema))
    assert [amount for _, amount in await shop_rows()] == [1, 2, 3]
    await shop.pool.execute(f'DROP SCHEMA "{deposits.schema}" CASCADE')


async def run_each(shop: Shop, *projections: Deposits) -> None:
    """Runs projections, one after the other, until each is up to date."""
    for one in projections:
        async with running(shop.processor(), one) as processor:
            await processor.caught_up(one)


async def test_a_schema_that_others_use_too_is_not_dropped(shop: Shop) -> None:
    view = f"{shop.schema}_view"
    deposits, other = Deposits(view), Deposits(view)
    other.name = "others"
    admin = Administration(shop.checkpoints, shop.boundary)
    await shop.append(1)
    await shop.pool.execute(f'CREATE SCHEMA "{view}"; COMMENT ON SCHEMA "{view}" IS $$the shop\'s 100 % "view"$$')
    await run_each(shop, deposits, other)
    for one, its in ((deposits, "others"), (other, "deposits")):
        for step in (admin.reset, admin.rebuild):
            with pytest.raises(ProjectionError, match=f'projection "{its}" of boundary "{shop.boundary.name}"'):
                await step(one)
    assert await shop.rows(view) == [("a", 1), ("a", 1)]
    comment = await shop.pool.fetchval("SELECT obj_description($1::regnamespace, 'pg_namespace')", view)
    assert comment.splitlines()[0] == 'the shop\'s 100 % "view"'
    assert len(comment.splitlines()) == 3
    for schema in (shop.schema, "public"):
        with_tables = Deposits(schema)
        with_tables.name = schema
        with pytest.raises(ProjectionError, match="other tables"):
            await admin.rebuild(with_tables)
    # one that has its schema for itself is reset and rebuilt again and again
    alone = Deposits(f"{view}_2")
    alone.name = "alone"
    async with running(shop.processor(), alone) as processor:
        await processor.caught_up(alone)
        for step in (admin.reset, admin.rebuild, admin.reset, admin.rebuild):
            await step(alone)
            await processor.caught_up(alone)
            assert await shop.rows(alone.schema) == [("a", 1)]
    for schema in (view, alone.schema):
        await shop.pool.execute(f'DROP SCHEMA "{schema}" CASCADE')


async def test_a_projection_that_was_renamed_is_told_how_to_have_its_schema_to_itself(shop: Shop) -> None:
    view = f"{shop.schema}_view"
    old, renamed = Deposits(view), Deposits(view)
    renamed.name = "payments"
    admin = Administration(shop.checkpoints, shop.boundary)
    await shop.append(1)
    await run_each(shop, old, renamed)
    mend = f"""COMMENT ON SCHEMA "{view}" IS '"""
    with pytest.raises(ProjectionError, match=f"renamed or is gone, .* without its line .{mend}"):
        await admin.reset(renamed)
    comment = await shop.pool.fetchval("SELECT obj_description($1::regnamespace, 'pg_namespace')", view)
    (line,) = [line for line in comment.splitlines() if '"payments"' in line]
    await shop.pool.execute(f"{mend}{line}'")
    await admin.reset(renamed)
    assert await shop.rows(view) == []
    with pytest.raises(ProjectionError, match=r"give it a schema of its own$"):
        await admin.rebuild(Deposits(shop.schema))
    await shop.pool.execute(f'DROP SCHEMA "{view}" CASCADE')


async def test_rebuild_swaps_in_one_step_while_workers_and_readers_go_on(shop: Shop) -> None:
    view = f"{shop.schema}_view"
    deposits = Deposits(view)

    class Doubled(Deposits):
        version = 2

        async def handle(self, tx: Any, event: orisun.Event) -> None:
            await tx.execute(
                "INSERT INTO deposit (account, amount) VALUES ($1, $2)", event.data["account"], 2 * event.data["amount"]
            )

    doubled = Doubled(view)
    admin = Administration(shop.checkpoints, shop.boundary)
    for first in range(0, 600, 100):
        await shop.append(*range(first, first + 100))
    old = shop.processor()
    work = asyncio.create_task(old.run(deposits))
    await eventually(lambda: old.stats.handled == 600)
    seen: list[int] = []
    reading = asyncio.Event()

    async def read() -> None:
        while not reading.is_set():
            seen.append(len(await shop.rows(view)))
            await shop.append(1)

    reader = asyncio.create_task(read())
    with pytest.raises(VersionMismatch, match="of version 1, and this worker of version 2"):
        await shop.processor().run(doubled)
    progress: list[int] = []
    done = await admin.rebuild(
        doubled, batch_size=50, on_progress=lambda one: progress.append(one.done), keep_previous=True
    )
    assert done.percent == 100
    assert progress == sorted(progress)
    await shop.append(1)
    with pytest.raises(VersionMismatch, match="of version 2, and this worker of version 1"):
        await asyncio.wait_for(work, 30)
    reading.set()
    await reader
    assert seen == sorted(seen), "no reader saw fewer rows than before"
    assert min(seen) >= 600
    async with running(shop.processor(), doubled) as new:
        await eventually(lambda: asyncio.ensure_future(_caught_up(new, doubled)))
    rows = await shop.rows(view)
    assert sum(amount for _, amount in rows) == 2 * (sum(range(600)) + len(rows) - 600)
    assert len(rows) == len(seen) + 601
    assert len(await shop.rows(f"{view}__previous")) >= 600
    for schema in (view, f"{view}__previous"):
        await shop.pool.execute(f'DROP SCHEMA "{schema}" CASCADE')


async def test_a_rebuild_that_fails_or_is_interrupted_leaves_the_read_model_and_goes_on(
    shop: Shop, pg_dsn: str
) -> None:
    view = f"{shop.schema}_view"
    deposits = Deposits(view)
    admin = Administration(shop.checkpoints, shop.boundary)
    for first in range(0, 600, 100):
        await shop.append(*range(first, first + 100))
    async with running(shop.processor(), deposits) as processor:
        await processor.caught_up(deposits)
        again = Deposits(view)
        again.poison = {450}
        with pytest.raises(ProjectionStopped):
            await admin.rebuild(again, batch_size=50)
        assert len(await shop.rows(view)) == 600
        assert len(await shop.rows(f"{view}__next")) == 450
        # live work goes on, then the rebuild does, from where it was
        await shop.append(600)
        again.poison = set()
        done = await admin.rebuild(again, batch_size=50)
        assert done.handled == 151
        await shop.append(601)
        await processor.caught_up(deposits)
        assert [amount for _, amount in await shop.rows(view)] == list(range(602))
    async with asyncpg.create_pool(pg_dsn, min_size=0, max_size=2) as small:
        with pytest.raises(ProjectionError, match="pool of 3 connections"):
            await Administration(small, shop.boundary).rebuild(again)
    await shop.pool.execute(f'DROP SCHEMA "{view}" CASCADE')


async def test_payloads_of_any_format(shop: Shop) -> None:
    seen: list[object] = []

    @projection("binary", orisun.where(account="a"))
    async def remember(tx: Any, event: orisun.Event) -> None:
        seen.append(event.data)

    payload = orisun.Binary(bytes(range(256)), "application/protobuf", {"account": "a"})
    await shop.boundary.append([orisun.NewEvent("Packed", payload)])
    async with running(shop.processor(), remember) as processor:
        await processor.caught_up(remember)
    assert seen == [payload]


async def _caught_up(processor: Processor, projection: Projection) -> bool:
    return (await processor.lag(projection)).events == 0


# -- without a server ----------------------------------------------------------------------------------------------


async def test_a_client_that_is_closed_ends_its_processors(shop: Shop, server: Connection) -> None:
    async with orisun.connect(server.address, username="admin", password="changeit") as client:
        processor = Processor(shop.checkpoints, client.boundary(shop.boundary.name))
        work = asyncio.create_task(processor.run(Deposits(shop.schema)))
        await shop.append(1)
        await eventually(lambda: processor.stats.handled == 1)
    with pytest.raises(orisun.ClientClosed, match='projection "deposits"'):
        await asyncio.wait_for(work, 30)
