"""Pages and scans from any position, against a list in Python: with and without indexes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orisun_server.core.criteria import Query, query
from orisun_server.core.position import NOTHING, Position
from orisun_server.storage import reads
from orisun_server.storage.catalog import Boundary
from orisun_server.storage.database import Database
from orisun_server.storage.index_sql import IndexDefinition, IndexField, ValueType
from orisun_server.storage.reads import Reader

INDEXES = (
    IndexDefinition("user", (IndexField("user"),)),
    IndexDefinition("both", (IndexField("user"), IndexField("n", ValueType.NUMERIC))),
    IndexDefinition("n", (IndexField("n", ValueType.NUMERIC),)),
)
MAX = 2**63 - 1


@dataclass
class Ready:
    """A boundary's READY indexes."""

    indexes: tuple[IndexDefinition, ...]

    def ready(self, _boundary: str) -> tuple[IndexDefinition, ...]:
        return self.indexes


@dataclass(frozen=True)
class Stored:
    position: Position
    data: dict[str, str]

    def matches(self, asked: Query) -> bool:
        return not asked or any(all(self.data.get(key) == value for key, value in one) for one in asked)


Call = tuple[int, list[dict[str, str]]]

data = st.fixed_dictionaries({"user": st.sampled_from("ab"), "n": st.sampled_from("12")})
#: a gap in the ids, then the events of a call
calls = st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 7]), st.lists(data, min_size=1, max_size=9)), max_size=12)
tags = st.sampled_from([("user", "a"), ("user", "b"), ("n", "1"), ("n", "2"), ("n", "x"), ("other", "1")])
queries = st.lists(st.lists(tags, min_size=1, max_size=2), max_size=3).map(query)
numbers = st.integers(-2, 60) | st.sampled_from([-(2**63), MAX - 1, MAX])
#: an event's own position by its number, moved a little, or any
positions = st.one_of(
    st.builds(Position, numbers, numbers), st.tuples(st.integers(0, 60), st.integers(-1, 1), st.integers(-1, 1))
)


def _position(chosen: Position | tuple[int, int, int], log: list[Stored]) -> Position:
    if isinstance(chosen, Position):
        return chosen
    number, commit, prepare = chosen
    near = log[number % len(log)].position if log else NOTHING
    return Position(near.commit + commit, near.prepare + prepare)


async def _store(database: Database, boundary: Boundary, batches: list[Call]) -> list[Stored]:
    log: list[Stored] = []
    next_id = 0
    for gap, events in batches:
        first = next_id + gap
        next_id = first + len(events)
        log += [Stored(Position(next_id, first + n), event) for n, event in enumerate(events)]
    await database.write.execute(f"DELETE FROM {boundary.names.q_events}")
    await database.write.execute(
        f"INSERT INTO {boundary.names.q_events} "
        "SELECT g, t, pg_current_xact_id(), g::text, 'T', d::jsonb, '{}', now() "
        "FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS e(g, t, d)",
        [one.position.prepare for one in log],
        [one.position.commit for one in log],
        [json.dumps(one.data) for one in log],
    )
    return log


async def _indexed(database: Database, boundary: Boundary) -> list[Reader]:
    for index in INDEXES:
        await database.write.execute(index.create_sql(boundary.names, index.pg_name(boundary.names, "")))
    return [Reader(database, Ready(indexes)) for indexes in ((), INDEXES[:1], INDEXES)]  # type: ignore[arg-type]


async def test_pages_are_slices_of_the_log(database: Database, boundary: Boundary) -> None:
    readers = await _indexed(database, boundary)

    async def compare(
        batches: list[Call], asked: Query, chosen: list[Position | tuple[int, int, int]], count: int
    ) -> None:
        log = await _store(database, boundary, batches)
        matching = [one.position for one in log if one.matches(asked)]
        for reader in readers:
            for position in [_position(one, log) for one in chosen]:
                assert [one.position for one in await reader.page(boundary, asked, count, start=position)] == [
                    one for one in matching if one >= position
                ][:count]
                assert [one.position for one in await reader.page(boundary, asked, count, after=position)] == [
                    one for one in matching if one > position
                ][:count]
                down = matching[::-1]
                page = await reader.page(boundary, asked, count, descending=True, start=position)
                assert [one.position for one in page] == [one for one in down if one <= position][:count]
                page = await reader.page(boundary, asked, count, descending=True, after=position)
                assert [one.position for one in page] == [one for one in down if one < position][:count]
            assert [one.position for one in await reader.page(boundary, asked, count)] == matching[:count]
            page = await reader.page(boundary, asked, count, descending=True)
            assert [one.position for one in page] == matching[::-1][:count]
            found, position = await reader.latest(boundary, asked)
            latest = [max((o.position for o in log if o.matches((one,))), default=NOTHING) for one in asked]
            assert [one.position if one else NOTHING for one in found] == latest
            assert position == max(latest, default=NOTHING)
            assert await reader.head(boundary) == (log[-1].position if log else NOTHING)

    loop = asyncio.get_running_loop()

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(calls, queries, st.lists(positions, min_size=1, max_size=4), st.integers(1, 12))
    def run(batches: list[Call], asked: Query, chosen: list[Position | tuple[int, int, int]], count: int) -> None:
        asyncio.run_coroutine_threadsafe(compare(batches, asked, chosen, count), loop).result(60)

    await asyncio.to_thread(run)


async def test_scans_cover_the_log(database: Database, boundary: Boundary, monkeypatch: pytest.MonkeyPatch) -> None:
    readers = await _indexed(database, boundary)
    monkeypatch.setattr(reads, "SCAN_BLOCK", 5)

    async def compare(
        batches: list[Call], asked: Query, chosen: Position | tuple[int, int, int], limit: int, size: int
    ) -> None:
        log = await _store(database, boundary, batches)
        start = max(_position(chosen, log), NOTHING)
        expected = [one.position for one in log if one.matches(asked) and one.position > start]
        for reader in readers:
            found: list[Position] = []
            covered, at_head = start, False
            while not at_head:
                scan = await reader.scan(boundary, asked, covered, limit, size)
                assert len(scan.events) <= limit
                assert scan.at_head or scan.covered > covered
                assert all(covered < one.position <= scan.covered for one in scan.events)
                found += [one.position for one in scan.events]
                covered, at_head = scan.covered, scan.at_head
            assert found == expected
            assert covered == max(start, log[-1].position if log else NOTHING)

    loop = asyncio.get_running_loop()

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(calls, queries, positions, st.sampled_from([1, 2, 5, 100]), st.sampled_from([1, 60, 100_000]))
    def run(batches: list[Call], asked: Query, chosen: Position | tuple[int, int, int], limit: int, size: int) -> None:
        asyncio.run_coroutine_threadsafe(compare(batches, asked, chosen, limit, size), loop).result(60)

    await asyncio.to_thread(run)
