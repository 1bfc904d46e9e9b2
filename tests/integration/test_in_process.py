"""The store on an application's own connection: inside its transactions, beside a server's appends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

import orisun
from orisun_server.delivery import signals
from orisun_server.errors import (
    BoundaryNotActive,
    ContextChanged,
    Deadlock,
    DuplicateEventId,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
)
from orisun_server.settings import Settings
from orisun_server.storage import in_process
from orisun_server.storage.in_process import NOTHING, Command, Context, InProcessStore, NewEvent, Position, query
from orisun_server.storage.in_process_boundary import InProcessBoundary
from orisun_server.storage.lane import SHORT_LOG
from tests.harness import eventually
from tests.integration.stores import Store


@dataclass(frozen=True)
class Deposit:
    """A command, and an event."""

    account: str
    amount: int


Connect = Callable[[], Awaitable[asyncpg.Connection]]


def placed(**data: object) -> NewEvent:
    return NewEvent(secrets.token_hex(12), "Placed", json.dumps(data), "{}")


@pytest.fixture
async def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings("orders", "payments")


@pytest.fixture
async def server_store(settings: Settings) -> AsyncIterator[Store]:
    async with Store(settings) as store:
        yield store


@pytest.fixture
def names(server_store: Store, settings: Settings) -> tuple[str, str]:
    """The boundaries orders and payments."""
    return settings.boundaries[0].name, settings.boundaries[1].name


@pytest.fixture
def store(server_store: Store, settings: Settings) -> InProcessStore:
    return InProcessStore(settings.admin_schema)


@pytest.fixture
async def connect(pg_dsn: str) -> AsyncIterator[Connect]:
    """Make connections of the application."""
    made: list[asyncpg.Connection] = []

    async def connect() -> asyncpg.Connection:
        made.append(await asyncpg.connect(pg_dsn))
        return made[-1]

    yield connect
    for connection in made:
        connection.terminate()


async def test_events_share_the_fate_of_the_application_s_writes(
    store: InProcessStore, names: tuple[str, str], connect: Connect
) -> None:
    orders, _ = names
    connection = await connect()
    await connection.execute("CREATE TEMPORARY TABLE shop_order (id text)")
    async with connection.transaction():
        await connection.execute("INSERT INTO shop_order VALUES ('o1')")
        assert await store.append(connection, orders, [placed(order="o1"), placed(order="o1")]) == (2, 1)
        assert len(await store.read(connection, orders)) == 2, "a transaction reads its own events"
        assert await store.read(await connect(), orders) == [], "nobody else does, before the commit"
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the transaction is what ends with it
        async with connection.transaction():
            await connection.execute("INSERT INTO shop_order VALUES ('o2')")
            await store.append(connection, orders, [placed(order="o2")])
            raise ZeroDivisionError
    assert await connection.fetchval("SELECT count(*) FROM shop_order") == 1
    found = await store.read(await connect(), orders)
    assert [json.loads(event.data)["order"] for event in found] == ["o1", "o1"]


async def test_positions_go_on_growing_after_a_rollback_and_beside_a_server(
    store: InProcessStore, names: tuple[str, str], connect: Connect, server_store: Store
) -> None:
    orders, _ = names
    connection = await connect()
    positions = [await store.append(connection, orders, [placed(n=0)])]
    transaction = connection.transaction()
    await transaction.start()
    await store.append(connection, orders, [placed(n=1)])
    waiting = asyncio.create_task(server_store.appender.append(server_store.catalog.get(orders), [placed(n=2)], None))
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done, "an open transaction holds its boundary"
    await transaction.rollback()
    positions.append(await waiting)
    positions.append(await store.append(connection, orders, [placed(n=3)]))
    assert positions == sorted(set(positions))
    assert [event.position for event in [e async for e in store.events(connection, orders, page=2)]] == positions


async def test_a_changed_context_is_refused_and_the_transaction_goes_on(
    store: InProcessStore, names: tuple[str, str], connect: Connect
) -> None:
    orders, _ = names
    connection = await connect()
    of_o1 = query([[("order", "o1")]])
    first = await store.append(connection, orders, [placed(order="o1")], Context(NOTHING, of_o1))
    async with connection.transaction():
        with pytest.raises(ContextChanged) as caught:
            await store.append(connection, orders, [placed(order="o1")], Context(NOTHING, of_o1))
        assert caught.value.actual == first
        _, seen = await store.latest(connection, orders, list(of_o1))
        assert seen == first
        await store.append(connection, orders, [placed(order="o1")], Context(seen, of_o1))
    assert len(await store.read(connection, orders, of_o1)) == 2


async def test_a_logger_is_told_of_appends_conflicts_and_reads(
    server_store: Store, settings: Settings, names: tuple[str, str], connect: Connect
) -> None:
    told: list[tuple[str, str, dict[str, object]]] = []

    class Told:
        def debug(self, message: str, /, **fields: object) -> None:
            told.append(("debug", message, fields))

        def info(self, message: str, /, **fields: object) -> None:
            told.append(("info", message, fields))

        def error(self, message: str, /, **fields: object) -> None:
            raise AssertionError(message)

    store, (orders, _), connection = InProcessStore(settings.admin_schema, logger=Told()), names, await connect()
    of_o1 = query([[("order", "o1")]])
    await store.append(connection, orders, [placed(order="o1"), placed(order="o1")])
    with pytest.raises(ContextChanged):
        await store.append(connection, orders, [placed(order="o1")], Context(NOTHING, of_o1))
    await store.read(connection, orders, of_o1)
    name = {"boundary": orders}
    assert told == [
        ("debug", "appended", name | {"events": 2, "position": "(2, 1)"}),
        ("info", "append conflicts", name | {"events": 1, "expected": "(-1, -1)", "actual": "(2, 1)"}),
        ("debug", "read", name | {"criteria": 1, "asked": 1_000, "events": 2}),
    ]


async def test_a_repeat_is_the_first_and_an_id_taken_is_told(
    store: InProcessStore, names: tuple[str, str], connect: Connect
) -> None:
    orders, _ = names
    connection = await connect()
    event = placed(order="o1")
    async with connection.transaction():
        first = await store.append(connection, orders, [event])
        assert await store.append(connection, orders, [event]) == first
        with pytest.raises(DuplicateEventId, match="event 0"):
            await store.append(connection, orders, [event._replace(data='{"order": "other"}')])
    assert len(await store.read(connection, orders)) == 1


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_other_isolation_levels_are_refused(
    store: InProcessStore, names: tuple[str, str], connect: Connect, isolation: str
) -> None:
    connection = await connect()
    async with connection.transaction(isolation=isolation):
        with pytest.raises(FailedPrecondition, match="isolation='read_committed'"):
            await store.append(connection, names[0], [placed(n=1)])
        assert await connection.fetchval("SELECT 1") == 1, "the caller's transaction is not lost"


async def test_what_cannot_be_stored_leaves_the_transaction_alone(
    store: InProcessStore, names: tuple[str, str], connect: Connect
) -> None:
    orders, _ = names
    connection = await connect()
    # begun by SQL, as some frameworks do
    await connection.execute("BEGIN")
    with pytest.raises(InvalidArgument, match="event 0 data"):
        await store.append(connection, orders, [placed()._replace(data="[1]")])
    with pytest.raises(InvalidArgument, match="cannot store") as caught:
        await store.append(connection, orders, [placed()._replace(data='{"secret": 1e999999}')])
    assert "999999" not in str(caught.value)
    await store.append(connection, orders, [placed(n=1)])
    with pytest.raises(BoundaryNotActive):
        await store.append(connection, "nobody", [placed(n=1)])
    await connection.execute("COMMIT")
    assert len(await store.read(connection, orders)) == 1
    with pytest.raises(asyncpg.UndefinedTableError):
        await connection.execute("BEGIN; SELECT * FROM no_such_table")
    with pytest.raises(FailedPrecondition, match="has failed already"):
        await store.append(connection, orders, [placed(n=1)])


async def test_opposite_orders_end_in_a_clear_error_and_lock_avoids_them(
    store: InProcessStore, names: tuple[str, str], connect: Connect
) -> None:
    orders, payments = names
    one, two = await connect(), await connect()
    for connection in (one, two):
        await connection.execute("SET deadlock_timeout = '50ms'")

    async def transfer(connection: asyncpg.Connection, *boundaries: str, before: asyncio.Barrier | None) -> None:
        async with connection.transaction():
            if before is None:
                await store.lock(connection, *boundaries)
            for number, boundary in enumerate(boundaries):
                await store.append(connection, boundary, [placed(n=number)])
                if before and not number:
                    await before.wait()

    barrier = asyncio.Barrier(2)
    outcomes = await asyncio.gather(
        transfer(one, orders, payments, before=barrier),
        transfer(two, payments, orders, before=barrier),
        return_exceptions=True,
    )
    (failed,) = [outcome for outcome in outcomes if outcome is not None]
    assert isinstance(failed, Deadlock)
    assert "lock(connection, ...)" in str(failed)
    await asyncio.gather(
        *(transfer(one, orders, payments, before=None) for _ in range(1)),
        *(transfer(two, payments, orders, before=None) for _ in range(1)),
    )
    assert len(await store.read(one, orders)) == len(await store.read(one, payments)) == 3
    with pytest.raises(FailedPrecondition, match="open transaction"):
        await store.lock(one, orders)


async def test_lock_timeout_bounds_the_wait(store: InProcessStore, names: tuple[str, str], connect: Connect) -> None:
    holder, other = await connect(), await connect()
    await other.execute("SET lock_timeout = '50ms'")
    async with holder.transaction():
        await store.append(holder, names[0], [placed(n=1)])
        async with other.transaction():
            with pytest.raises(Unavailable, match="lock_timeout"):
                await store.append(other, names[0], [placed(n=2)])
            assert await store.append(other, names[1], [placed(n=2)]) == (1, 0)


async def test_an_application_that_dies_frees_its_boundary(
    store: InProcessStore, names: tuple[str, str], connect: Connect
) -> None:
    dying, other = await connect(), await connect()
    await dying.execute("BEGIN")
    await store.append(dying, names[0], [placed(n=1)])
    waiting = asyncio.create_task(store.append(other, names[0], [placed(n=2)]))
    dying.terminate()
    await asyncio.wait_for(waiting, 30)
    assert [json.loads(event.data)["n"] for event in await store.read(other, names[0])] == [2]
    with pytest.raises(Unavailable, match="closed"):
        await store.append(dying, names[0], [placed(n=3)])


async def test_concurrent_transactions_lose_and_repeat_nothing(
    store: InProcessStore, names: tuple[str, str], connect: Connect, server_store: Store
) -> None:
    orders, _ = names
    counter = query([[("counter", "c")]])

    async def count_up(connection: asyncpg.Connection) -> None:
        for _ in range(8):
            while True:
                async with connection.transaction():
                    found, seen = await store.latest(connection, orders, list(counter))
                    value = json.loads(found[0].data)["value"] if found[0] else 0
                    try:
                        event = placed(counter="c", value=value + 1)
                        await store.append(connection, orders, [event], Context(seen, counter))
                        break
                    except ContextChanged:
                        continue

    connections = [await connect() for _ in range(4)]
    await asyncio.gather(*(count_up(connection) for connection in connections))
    values = [json.loads(event.data)["value"] for event in await store.read(connections[0], orders)]
    assert values == list(range(1, 33))


async def _long(store: InProcessStore, connection: asyncpg.Connection, boundary: str) -> None:
    """Makes the boundary's log one that is not to be read under its lock."""
    for _ in range(2):
        await store.append(connection, boundary, [placed(n=n) for n in range(SHORT_LOG)])


async def test_without_an_index_the_log_is_read_before_the_lock_and_the_context_is_exact(
    store: InProcessStore, names: tuple[str, str], connect: Connect
) -> None:
    """What came between the look and the lock is a conflict; under the lock no more than that is read."""
    holder, other = await connect(), await connect()
    await _long(store, holder, names[0])
    of_o1 = query([[("order", "o1")]])
    _, seen = await store.latest(other, names[0], list(of_o1))
    probes: list[str] = []
    other.add_query_logger(lambda query: probes.extend(query.args[9] if "append" in query.query else ()))
    async with holder.transaction():
        await store.lock(holder, names[0])
        late = asyncio.create_task(store.append(other, names[0], [placed(order="o1")], Context(seen, of_o1)))
        pid = other.get_server_pid()
        waits = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND pid = $1"
        await eventually(lambda: holder.fetchval(waits, pid))
        between = await store.append(holder, names[0], [placed(order="o1")])
    with pytest.raises(ContextChanged) as caught:
        await late
    assert caught.value.actual == between
    assert probes, "the append was seen"
    assert all("global_id > " in probe for probe in probes), "only what is behind the head is looked at"
    async with other.transaction():
        own = await store.append(other, names[0], [placed(order="o1")], Context(between, of_o1))
        # its own events are part of what a transaction's next append rests on
        with pytest.raises(ContextChanged):
            await store.append(other, names[0], [placed(order="o1")], Context(between, of_o1))
        await store.append(other, names[0], [placed(order="o1")], Context(own, of_o1))


async def test_a_look_that_takes_too_long_says_which_index_is_missing(
    store: InProcessStore, names: tuple[str, str], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await connect()
    await _long(store, connection, names[0])
    monkeypatch.setattr(in_process, "PATIENCE", 0.00001)
    async with connection.transaction():
        with pytest.raises(FailedPrecondition, match="CreateIndex"):
            await store.append(connection, names[0], [placed(n=1)], Context(NOTHING, query([[("order", "o1")]])))
        await store.append(connection, names[0], [placed(n=1)])


async def test_a_server_delivers_what_the_application_stored(
    store: InProcessStore, names: tuple[str, str], connect: Connect, server_store: Store, settings: Settings
) -> None:
    assert in_process.CHANNEL == signals.CHANNEL
    connection, listener = await connect(), await connect()
    heard: list[object] = []
    await listener.add_listener(signals.CHANNEL, lambda *arguments: heard.append(arguments[-1]))
    await store.append(connection, names[0], [placed(n=1)])
    await store.wake(connection, names[0])
    await eventually(lambda: f"{settings.admin_schema}:{names[0]}" in heard)
    async with connection.transaction():
        with pytest.raises(FailedPrecondition, match="after the commit"):
            await store.wake(connection, names[0])


async def test_no_catalog_says_what_to_do(connect: Connect) -> None:
    with pytest.raises(FailedPrecondition, match="orisun migrations generate"):
        await InProcessStore("no_such_schema").append(await connect(), "orders", [placed(n=1)])


async def test_positions_are_those_of_the_wire(store: InProcessStore, names: tuple[str, str], connect: Connect) -> None:
    connection = await connect()
    assert await store.append(connection, names[0], [placed(n=n) for n in range(3)]) == Position(3, 2)


async def test_a_command_is_stored_with_its_events_or_not_at_all(
    store: InProcessStore, names: tuple[str, str], connect: Connect, server_store: Store
) -> None:
    connection = await connect()
    command = Command("c-1", "PlaceOrder", '{"order": "o1"}', "{}")
    table = server_store.catalog.get(names[0]).names.q_commands
    for outcome in (ZeroDivisionError, None):
        with contextlib.suppress(ZeroDivisionError):
            async with connection.transaction():
                await store.append(connection, names[0], [placed(order="o1")], command=command)
                if outcome is not None:
                    raise outcome
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == (0 if outcome else 1)


# -- the client's view of it ---------------------------------------------------------------------------------------


def deposited(account: str, amount: int) -> orisun.NewEvent:
    return orisun.NewEvent("Deposited", {"account": account, "amount": amount})


def balance_of(account: str) -> orisun.Projector[int]:
    criteria = orisun.where("Deposited", account=account)
    return orisun.Projector(account, criteria, 0, lambda sum, event: sum + int(event.data["amount"]))


async def test_decisions_and_streams_share_the_fate_of_the_transaction(
    store: InProcessStore, names: tuple[str, str], connect: Connect
) -> None:
    connection, other = await connect(), await connect()
    accounts, elsewhere = store.boundary(connection, names[0]), store.boundary(other, names[0])
    async with connection.transaction():
        assert await accounts.append([deposited("a", 5), deposited("b", 1)]) == (2, 1)
        decision = await orisun.decide(accounts, balance_of("a"), balance_of("b"))
        assert (decision["a"], decision["b"]) == (5, 1)
        assert (await orisun.decide(elsewhere, balance_of("a")))["a"] == 0, "not committed yet"
        stream = orisun.AggregateStream(accounts, "User", "u-1")
        assert (await stream.append([orisun.NewEvent("Created")], expected=orisun.NO_STREAM)).version == 1
        assert (await stream.append([orisun.NewEvent("Renamed"), orisun.NewEvent("Renamed")])).version == 3
        with pytest.raises(orisun.VersionConflict) as caught:
            await stream.append([orisun.NewEvent("Renamed")], expected=1)
        assert caught.value.actual_version == 3
        assert [orisun.version_of(event) async for event in stream.read(2)] == [2, 3]
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the transaction is what ends with it
        async with connection.transaction():
            await accounts.append([deposited("a", -5)], condition=decision.condition)
            assert (await orisun.decide(accounts, balance_of("a")))["a"] == 0
            raise ZeroDivisionError
    assert (await orisun.decide(elsewhere, balance_of("a")))["a"] == 5
    # the condition that the first decision gave still holds for it, and not for long
    position = await elsewhere.append([deposited("a", 1)], condition=decision.condition)
    with pytest.raises(orisun.Conflict) as conflict:
        await accounts.append([deposited("a", 1)], condition=decision.condition)
    assert (conflict.value.expected, conflict.value.actual) == (decision.position, position)


async def test_commands_are_executed_in_the_transaction(
    server_store: Store, store: InProcessStore, names: tuple[str, str], connect: Connect
) -> None:
    table, connection = server_store.catalog.get(names[0]).names.q_commands, await connect()
    accounts = store.boundary(connection, names[0])
    executor = orisun.CommandExecutor(accounts)

    @executor.handler(Deposit, lambda command: [balance_of(command.account)])
    def deposit(command: Deposit, decision: orisun.Decision) -> list[orisun.NewEvent]:
        return [deposited(command.account, command.amount)]

    async with connection.transaction():
        first = await executor.execute(Deposit("a", 3), command_id="c-1")
        again = await executor.execute(Deposit("a", 3), command_id="c-1")
    assert (first.repeated, again.repeated, first.position == again.position) == (False, True, True)
    assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 1, "the command is stored with its events"


async def test_payload_classes_pages_and_errors_are_the_client_s(
    store: InProcessStore, names: tuple[str, str], connect: Connect
) -> None:
    types = orisun.EventTypes()
    types.register(Deposit)
    connection = await connect()
    accounts = store.boundary(connection, names[0], types=types)
    await accounts.append([Deposit("a", number) for number in range(7)])
    amounts = lambda **options: _amounts(accounts, **options)  # noqa: E731
    assert await amounts(page_size=3) == [0, 1, 2, 3, 4, 5, 6]
    assert await amounts(page_size=2, descending=True, limit=3) == [6, 5, 4]
    assert await amounts(after=orisun.Position(7, 2), limit=2) == [3, 4]
    assert await amounts(start=orisun.Position(7, 2), page_size=2) == [2, 3, 4, 5, 6]
    latest = await accounts.latest(orisun.where(amount=3) | orisun.where(amount=9))
    assert ([event and event.data for event in latest.events], latest.position) == ([Deposit("a", 3), None], (7, 3))
    event = deposited("a", 1)
    await accounts.append([event])
    with pytest.raises(orisun.DuplicateEventId):
        await accounts.append([orisun.NewEvent("Other", {}, event_id=event.event_id)])
    with pytest.raises(orisun.InvalidArgument, match="no events"):
        await accounts.append([])
    with pytest.raises(orisun.FailedPrecondition, match="not active"):
        await store.boundary(connection, "nowhere").append([event])
    holder = await connect()
    async with holder.transaction():
        await store.lock(holder, names[0])
        with pytest.raises(orisun.DeadlineExceeded):
            await accounts.append([deposited("a", 1)], timeout=0.1)
    await accounts.append([deposited("a", 2)])


async def _amounts(accounts: InProcessBoundary, **options: Any) -> list[int]:
    return [event.data.amount async for event in accounts.read(**options)]
