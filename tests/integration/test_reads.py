"""Reads on a real PostgreSQL; pages and scans from arbitrary positions are in property/test_reads.py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from orisun_server.core.criteria import WHOLE_BOUNDARY, criterion, query
from orisun_server.core.position import NOTHING, Position
from orisun_server.errors import InvalidArgument, ResourceExhausted
from orisun_server.settings import Settings
from orisun_server.storage.group_commit import Appender
from orisun_server.storage.reads import SCAN_BLOCK, Reader
from tests.integration.stores import Store, event, index


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    async with Store(settings) as store:
        yield store


async def test_an_empty_boundary(store: Store) -> None:
    reader, boundary = store.reader, store.boundary
    assert await reader.head(boundary) == NOTHING
    assert await reader.latest(boundary, [criterion([("a", "1")])]) == ([None], NOTHING)
    for descending in (False, True):
        for position in (None, NOTHING, Position(0, 0), Position(7, 3)):
            assert await reader.page(boundary, (), 10, descending=descending, start=position) == []
    for asked in (WHOLE_BOUNDARY, query([[("a", "1")]])):
        assert await reader.scan(boundary, asked, NOTHING, 10, 1000) == ([], NOTHING, True)


async def test_an_event_as_it_was_stored(store: Store) -> None:
    data = '{"b": 1, "a": {"deep": [1.50, "é"]}, "n": 123456789012345678901234567890}'
    await store.append(event(data, "Placed")._replace(event_id="E-1", metadata='{"by":   "me"}'))
    (stored,) = await store.reader.page(store.boundary, (), 10)
    assert stored[:4] == (1, 0, "E-1", "Placed")
    assert stored.data == '{"a": {"deep": [1.50, "é"]}, "b": 1, "n": 123456789012345678901234567890}'
    assert stored.metadata == '{"by": "me"}'
    assert stored.date_created.tzinfo is not None
    assert stored.position == Position(1, 0)


async def test_latest_answers_in_order_and_from_one_snapshot(store: Store) -> None:
    await store.create(index("a", "a"))
    await store.append(event({"a": 1, "b": "x"}), event({"a": 2, "b": "x"}), event({"a": 1, "b": None}))
    asked = [[("a", "1")], [("b", "x")], [("a", "3")], [("a", "2"), ("b", "x")], [("a", "1")], [("b", "null")]]
    found, position = await store.reader.latest(store.boundary, [criterion(tags) for tags in asked])
    assert [one and one.prepare for one in found] == [2, 1, None, 1, 2, None]
    assert position == Position(3, 2)

    # an account and its mirror change together; no answer shows one without the other
    async def write() -> None:
        for number in range(40):
            await store.append(event({"a": "account", "n": number}), event({"a": "mirror", "n": number}))

    writing = asyncio.create_task(write())
    both = [criterion([("a", "account")]), criterion([("a", "mirror")])]
    while not writing.done():
        (account, mirror), position = await store.reader.latest(store.boundary, both)
        assert (account is None) == (mirror is None)
        if account and mirror:
            assert json.loads(account.data)["n"] == json.loads(mirror.data)["n"]
            assert mirror.position == position == (account.commit, account.prepare + 1)
    await writing


async def test_a_repeated_key_must_match_each_time(store: Store) -> None:
    for definitions in ([], [index("a", "a")]):
        await store.create(*definitions)
        await store.append(event({"a": 1}))
        assert await store.reader.page(store.boundary, query([[("a", "1"), ("a", "2")]]), 10) == []
        assert (await store.reader.latest(store.boundary, [criterion([("a", "2"), ("a", "1")])]))[0] == [None]


async def test_event_type_is_a_key(store: Store) -> None:
    await store.append(event({"event_type": "Other"}, "Placed"), event({}, "Other"))
    for definitions in ([], [index("type", "eventType")]):
        await store.create(*definitions)
        for key in ("eventType", "event_type"):
            found = await store.reader.page(store.boundary, query([[(key, "Placed")]]), 10)
            assert [one.prepare for one in found] == [0]


async def test_a_page_of_too_many_bytes_is_refused(store: Store) -> None:
    # a number of few bytes in storage that prints as very many
    await store.append(*(event(f'{{"n": 1e{100_000 + n}}}') for n in range(20)), event({"n": 1}))
    reader = Reader(store.database, store.indexes, max_bytes=1_000_000)
    with pytest.raises(ResourceExhausted, match=r"^a page of 15 events has more than 1000000 bytes; ask for fewer"):
        await reader.page(store.boundary, (), 15)
    assert len(await reader.page(store.boundary, (), 9)) == 9
    small = Reader(store.database, store.indexes, max_bytes=1_000)
    assert len((await small.page(store.boundary, (), 1))[0].data) > 100_000
    # the one that is too large hides none of those that follow
    with pytest.raises(ResourceExhausted):
        await small.page(store.boundary, (), 2, after=Position(21, 18))
    scan = await small.scan(store.boundary, (), NOTHING, 10, 1_000)
    assert [one.prepare for one in scan.events] == [0]
    assert (scan.covered, scan.at_head) == (Position(21, 0), False)
    scan = await small.scan(store.boundary, (), NOTHING, 10, 250_000)
    assert [one.prepare for one in scan.events] == [0, 1, 2]


async def test_a_scan_without_an_index_moves_on_in_blocks(store: Store) -> None:
    events = 2 * SCAN_BLOCK + 10
    for start in range(0, events, 5_000):
        await store.append(*(event({"n": n}) for n in range(start, min(start + 5_000, events))))
    asked = query([[("n", str(events - 5))]])
    calls, covered, at_head = 0, NOTHING, False
    found = []
    while not at_head:
        events_found, covered, at_head = await store.reader.scan(store.boundary, asked, covered, 100, 10_000)
        found += events_found
        calls += 1
    assert [one.prepare for one in found] == [events - 5]
    assert covered == await store.reader.head(store.boundary)
    assert calls == 3
    await store.create(index("n", "n"))
    scan = await store.reader.scan(store.boundary, asked, NOTHING, 100, 10_000)
    assert (scan.events, scan.covered, scan.at_head) == (found, covered, True)


async def test_reads_wait_for_no_transaction_of_others(store: Store) -> None:
    await store.append(event({"a": 1}))
    other = await store.database.dedicated_connection()
    try:
        await other.execute("BEGIN; SELECT pg_current_xact_id()")
        await store.append(event({"a": 2}))
        assert [one.prepare for one in await store.reader.page(store.boundary, (), 10)] == [0, 1]
        scan = await store.reader.scan(store.boundary, (), NOTHING, 10, 1000)
        assert (len(scan.events), scan.at_head) == (2, True)
    finally:
        await other.close()


async def test_a_nul_in_a_criterion_is_refused(store: Store) -> None:
    with pytest.raises(InvalidArgument, match="NUL"):
        await store.reader.page(store.boundary, query([[("a", "\0")]]), 10)


async def test_readers_see_prefixes_only(store: Store) -> None:
    """While two servers append, one much slower: never an event without those before it, and never half of a call."""
    servers = {store.appender: 400, Appender(store.database, store.indexes): 2}
    stop = False

    async def write(server: Appender, count: int) -> None:
        while not stop:
            await server.append(store.boundary, [event({}) for _ in range(count)], None)

    async def read_on() -> int:
        seen = NOTHING
        while seen.prepare < 12_000:
            page = await store.reader.page(store.boundary, (), 10_000, after=seen)
            prepares = [one.prepare for one in page]
            assert prepares == list(range(seen.prepare + 1, seen.prepare + 1 + len(prepares)))
            assert len(page) % 2 == 0
            seen = page[-1].position if page else seen
        return seen.prepare

    async def read_back(readers: list[asyncio.Task[int]]) -> None:
        while not all(reader.done() for reader in readers):
            page = await store.reader.page(store.boundary, (), 1_000, descending=True)
            prepares = [one.prepare for one in page]
            newest = prepares[0] if prepares else -1
            assert prepares == list(range(newest, newest - len(prepares), -1))
            assert newest % 2 == 1

    writers = [asyncio.create_task(write(*server)) for server in servers.items()]
    readers = [asyncio.create_task(read_on()) for _ in range(3)]
    try:
        await asyncio.gather(*readers, read_back(readers))
    finally:
        stop = True
        await asyncio.gather(*writers)
