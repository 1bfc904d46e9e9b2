"""Indexes: created, built by any server, repaired and dropped, and never in the way of an append."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import asyncpg
import pytest

from orisun_server.core.criteria import criterion
from orisun_server.core.position import Position
from orisun_server.errors import AlreadyExists, InvalidArgument, NotFound
from orisun_server.settings import Settings
from orisun_server.storage import index_builder
from orisun_server.storage.catalog import Boundary
from orisun_server.storage.index_sql import IndexCondition, IndexDefinition, IndexField
from tests.harness import eventually
from tests.integration.stores import BOOLEAN, NUMERIC, TIMESTAMPTZ, Store, event, index

AMOUNT = index("placed_amount", ("amount", NUMERIC), where=(("eventType", "=", "Placed"),))


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    async with Store(settings) as store:
        yield store


@contextlib.asynccontextmanager
async def open_transaction(store: Store, *boundaries: Boundary) -> AsyncIterator[asyncpg.Connection]:
    """A transaction that has written to the events (of the first boundary): a concurrent build waits for it."""
    connection = await store.database.dedicated_connection()
    tables = ", ".join(boundary.names.q_events for boundary in boundaries or [store.boundary])
    await connection.execute(f"BEGIN; LOCK TABLE {tables} IN ROW EXCLUSIVE MODE")
    try:
        yield connection
    finally:
        await connection.close()


async def is_building(store: Store) -> bool:
    """Whether PostgreSQL is at it, and has come to where it waits for others."""
    return await _are_building(store, [store.boundary], 1)


async def _are_building(store: Store, boundaries: Sequence[Boundary], count: int) -> bool:
    """Whether PostgreSQL is at indexes of so many of them, and has come to where it waits for others."""
    return bool(
        await store.database.admin.fetchval(
            "SELECT count(*) = $2 FROM pg_stat_progress_create_index"
            " WHERE relid = ANY ($1::text[]::regclass[]) AND phase LIKE 'waiting%'",
            [boundary.names.q_events for boundary in boundaries],
            count,
        )
    )


async def test_an_index_is_building_and_then_ready(store: Store) -> None:
    async with open_transaction(store):
        await store.indexes.create(store.boundary, AMOUNT)
        assert await store.state("placed_amount") == "BUILDING"
        assert store.indexes.ready(store.boundary.name) == ()
    await store.is_ready(AMOUNT)
    assert await store.state("placed_amount") == "READY"
    (record,) = await store.indexes.list(store.boundary)
    assert record.definition == AMOUNT
    assert await store.built() == {record.pg_name: True}
    ready = store.indexes.ready(store.boundary.name)
    await store.indexes.create(store.boundary, AMOUNT)
    assert store.indexes.ready(store.boundary.name) is ready
    with pytest.raises(AlreadyExists, match=r'^index "placed_amount" already exists with other fields or conditions$'):
        await store.indexes.create(store.boundary, index("placed_amount", "amount"))


async def test_what_an_index_cannot_be_is_refused(store: Store) -> None:
    field = IndexField("a")
    for definition, message in [
        (IndexDefinition("", (field,)), "^boundary, name, and at least one field are required$"),
        (IndexDefinition("x", ()), "^boundary, name, and at least one field are required$"),
        (index("x", "a", ""), "^each field must have a json_key$"),
        (index("x", "a", where=(("", "=", "1"),)), "^each condition must have a key$"),
        (index("x", "a", where=(("b", "<>", "1"),)), '^invalid operator "<>": must be one of =, >, <, >=, <=$'),
        (index("x'y", "a"), '^invalid index name "x\'y"'),
        (index("x" * 64, "a"), "^invalid index name"),
        (index("x", *(f"k{n}" for n in range(17))), "at most 16 fields"),
        (index("x", "a\0"), "^field 0: json_key"),
        (index("x", "a", "b", "a"), '^field 2: json_key "a" is given twice$'),
        (index("x", "a", where=(("b", "=", "1" * 1001),)), "^condition 0: value must have at most 1000"),
    ]:
        with pytest.raises(InvalidArgument, match=message):
            await store.indexes.create(store.boundary, definition)
    assert await store.indexes.list(store.boundary) == []


async def test_dropping(store: Store) -> None:
    await store.indexes.drop(store.boundary, "nothing")
    with pytest.raises(NotFound, match=r'^index "placed_amount" not found$'):
        await store.indexes.get(store.boundary, "placed_amount")
    await store.create(AMOUNT)
    await store.indexes.drop(store.boundary, "placed_amount")
    assert store.indexes.ready(store.boundary.name) == ()
    assert await store.indexes.list(store.boundary) == []
    other = index("placed_amount", "amount")
    await store.create(other)
    await eventually(lambda: _count(store, 1))
    await store.indexes.drop(store.boundary, "placed_amount")
    await store.create(other)
    await eventually(lambda: _count(store, 1))
    await eventually(lambda: _catalog_rows(store, 1))


async def test_dropping_while_it_is_built_ends_the_build(store: Store) -> None:
    async with open_transaction(store):
        await store.indexes.create(store.boundary, AMOUNT)
        await eventually(lambda: is_building(store))
        await store.indexes.drop(store.boundary, AMOUNT.name)
        assert await store.indexes.list(store.boundary) == []
        # PostgreSQL is no longer building, although what it waited for is still there
        await eventually(lambda: _not(is_building(store)))
    await eventually(lambda: _count(store, 0))
    await eventually(lambda: _catalog_rows(store, 0))


async def test_another_server_sees_an_index_and_takes_part(store: Store, settings: Settings) -> None:
    async with Store(settings) as other:
        await store.create(AMOUNT)
        await other.is_ready(AMOUNT)
        await other.indexes.drop(other.boundary, AMOUNT.name)
        await eventually(lambda: store.indexes.ready(store.boundary.name) == ())


async def test_a_build_outlives_its_server(store: Store, settings: Settings) -> None:
    async with open_transaction(store) as blocking:
        async with Store(settings) as builder:
            await store.indexes.stop()
            await builder.indexes.create(builder.boundary, AMOUNT)
            await eventually(lambda: is_building(builder))
            (built,) = await builder.built()
        # its server has stopped; PostgreSQL goes on
        assert await is_building(store)
        await store.indexes.start()
        await asyncio.sleep(0.5)  # time to do wrong: to build it a second time
        assert await store.built() == {built: False}
        await blocking.execute("COMMIT")
        await store.is_ready(AMOUNT)
    assert await store.built() == {built: True}


async def test_what_an_interrupted_build_leaves_is_built_again(store: Store, settings: Settings) -> None:
    async with open_transaction(store):
        await store.indexes.create(store.boundary, AMOUNT)
        await eventually(lambda: is_building(store))
        await store.indexes.stop()
        await store.database.admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_progress_create_index WHERE relid = $1::text::regclass",
            store.boundary.names.q_events,
        )
        await eventually(lambda: _not(is_building(store)))
    assert list((await store.built()).values()) == [False]
    async with Store(settings) as other:
        await other.is_ready(AMOUNT)
        assert list((await other.built()).values()) == [True]


async def test_an_index_dropped_by_hand_comes_back(store: Store) -> None:
    await store.create(AMOUNT)
    (pg_name,) = await store.built()
    await store.database.admin.execute(f"DROP INDEX {store.boundary.names.qualified(pg_name)}")

    async def comes_back() -> bool:
        return await store.built() == {pg_name: True}

    await eventually(comes_back, timeout=60)
    await store.is_ready(AMOUNT)


async def test_a_failing_build_says_why_and_is_tried_again(store: Store) -> None:
    (name,) = (boundary.name for boundary in store.settings.boundaries[:1])
    table = store.boundary.names.q_events
    await store.database.admin.execute(f"ALTER TABLE {table} RENAME COLUMN transaction_id TO hidden")
    await store.indexes.create(store.boundary, AMOUNT)

    async def failed() -> bool:
        return (await store.indexes.get(store.boundary, AMOUNT.name)).last_error == "UndefinedColumnError (42703)"

    await eventually(failed)
    await store.database.admin.execute(f"ALTER TABLE {table} RENAME COLUMN hidden TO transaction_id")
    await store.is_ready(AMOUNT)
    assert (await store.indexes.get(store.boundary, AMOUNT.name)).last_error == ""
    assert name == store.boundary.name


VALUES = [
    "", "1", "-1.50", "1e400", "9" * 400, "0." + "1" * 400, "NaN", "infinity", "true", "TRUE", "t", "null", "x",
    "2024-01-31T10:00:00Z", "2024-01-31T10:00:00.123456789+05:30", "2024-01-31 10:00", "2024-02-31T00:00:00Z",
    "2024-13-01T00:00:00Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59-15:59", "0001-01-01T00:00:00+15:59",
    "2024-01-31T10:00:00+0530", "now", "épée", "😀" * 1000, "a" * 255, "a" * 500, "a" * 501, "a\\b'c",
]  # fmt: skip


@pytest.mark.parametrize("existing", [True, False])
async def test_no_value_fails_an_append_or_a_build_or_escapes_a_match(store: Store, existing: bool) -> None:
    # what does not compress, so that it would not fit into a row of the index
    long = "".join(chr(0x10000 + (n * 7919) % 100_000) for n in range(250_000))
    values: list[object] = [*VALUES, long, long + "x", 7, 1.5, 10**40, True, None, {"a": 1}, [1, "a"]]
    definitions = [
        index("text", "k"),
        index("number", ("k", NUMERIC)),
        index("truth", ("k", BOOLEAN)),
        index("time", ("k", TIMESTAMPTZ)),
        index("all", *(f"k{n}" for n in range(16))),
        index("mixed", "k", ("n", NUMERIC), ("t", TIMESTAMPTZ), ("b", BOOLEAN), "eventType"),
        index("part", "k", where=(("k", ">", "1"), ("k", "<=", "x")), combinator="OR"),
    ]
    if existing:
        await store.create(*definitions)
    positions: dict[str | None, Position] = {}
    for value in values:
        data = {"k": value, "n": value, "t": value, "b": value, **{f"k{n}": value for n in range(16)}}
        positions[_text(value)] = await store.append(event(data, "T" * 255))
    if not existing:
        await store.create(*definitions)
    ready = store.indexes.ready(store.boundary.name)
    assert set(ready) == set(definitions)
    texts = [text for text in positions if text is not None]
    found, _ = await store.reader.latest(store.boundary, [criterion([("k", text)]) for text in texts])
    assert [one and one.position for one in found] == [positions[text] for text in texts]
    keys = [criterion((f"k{n}", text) for n in range(16)) for text in texts]
    found, _ = await store.reader.latest(store.boundary, keys)
    assert [one and one.position for one in found] == [positions[text] for text in texts]
    keys = [criterion([("k", t), ("n", t), ("t", t), ("b", t), ("eventType", "T" * 255)]) for t in texts]
    found, _ = await store.reader.latest(store.boundary, keys)
    assert [one and one.position for one in found] == [positions[text] for text in texts]


async def test_long_names_and_shared_prefixes_stay_apart(store: Store) -> None:
    first, second = index("x" * 62 + "a", "k"), index("x" * 62 + "b", "k")
    await store.create(first, second)
    assert list((await store.built()).values()) == [True, True]
    await store.indexes.drop(store.boundary, first.name)
    await eventually(lambda: _count(store, 1))
    assert store.indexes.ready(store.boundary.name) == (second,)


async def test_conditions_and_quotes_in_keys(store: Store) -> None:
    key = 'it\'s a \\ "key" {schema}'
    definition = index("odd", key, where=((key, ">=", "a'b\\"),))
    await store.create(definition)
    await store.append(event({key: "a'b\\c"}))
    await store.append(event({key: "A"}))
    wanted = [criterion([(key, "a'b\\c")]), criterion([(key, "A")]), criterion([(key, "a'b")])]
    found, _ = await store.reader.latest(store.boundary, wanted)
    assert [one and one.prepare for one in found] == [0, 1, None]
    assert IndexCondition(key, ">=", "a'b\\").holds("a'b\\c")


async def test_many_boundaries_build_at_the_same_time(make_settings: Callable[..., Settings]) -> None:
    async with Store(make_settings(*(f"b{n}" for n in range(6)))) as store:
        boundaries = [store.catalog.get(one.name) for one in store.settings.boundaries]
        for boundary in boundaries:
            await store.indexes.create(boundary, AMOUNT)
        await eventually(lambda: all(store.indexes.ready(boundary.name) == (AMOUNT,) for boundary in boundaries))


@pytest.mark.parametrize("again", [False, True], ids=["its own", "of the server before"])
async def test_builds_that_wait_for_somebody_s_transaction_hold_up_no_other(
    make_settings: Callable[..., Settings], again: bool
) -> None:
    async with Store(make_settings("other", "b1", "b2", "b3")) as store:
        other, *held = [store.catalog.get(one.name) for one in store.settings.boundaries[:4]]
        async with open_transaction(store, *held):
            for boundary in held:
                await store.indexes.create(boundary, AMOUNT)
            await eventually(lambda: _are_building(store, held, 3))
            if again:
                await store.indexes.stop()
                await store.indexes.start()
                await eventually(lambda: len(store.indexes._builder._tasks) == 3)
            await store.indexes.create(other, AMOUNT)
            await eventually(lambda: store.indexes.ready(other.name) == (AMOUNT,))
            assert await _are_building(store, held, 3)
        await eventually(lambda: all(store.indexes.ready(boundary.name) == (AMOUNT,) for boundary in held))


async def test_builds_that_wait_have_a_bound_for_each_takes_a_connection(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_builder, "_MOST", 3)
    async with Store(make_settings("b1", "b2", "b3", "b4")) as store:
        held = [store.catalog.get(one.name) for one in store.settings.boundaries[:4]]
        async with open_transaction(store, *held):
            for boundary in held:
                await store.indexes.create(boundary, AMOUNT)
            await eventually(lambda: _are_building(store, held, 3))
            await store.indexes._builder.dispatch()
            assert len(store.indexes._builder._tasks) == 3
        await eventually(lambda: all(store.indexes.ready(boundary.name) == (AMOUNT,) for boundary in held))


def _text(value: object) -> str | None:
    match value:
        case None:
            return None
        case bool():
            return str(value).lower()
        case {"a": 1}:
            return '{"a": 1}'
        case [1, "a"]:
            return '[1, "a"]'
        case _:
            return str(value)


async def _not(condition: Awaitable[bool]) -> bool:
    return not await condition


async def _count(store: Store, count: int) -> bool:
    return len(await store.built()) == count


async def _catalog_rows(store: Store, count: int) -> bool:
    table = f'"{store.settings.admin_schema}".orisun_index'
    return bool(await store.database.admin.fetchval(f"SELECT count(*) = $1 FROM {table}", count))
