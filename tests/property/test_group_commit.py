"""A group's answers equal those of its calls executed one after the other, in the order of arrival."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orisun_server.core.append import Context
from orisun_server.core.criteria import Criterion, Query, query
from orisun_server.core.event import NewEvent
from orisun_server.core.position import NOTHING, Position
from orisun_server.errors import OrisunError
from orisun_server.storage import lane
from orisun_server.storage.catalog import Boundary
from orisun_server.storage.database import Database
from orisun_server.storage.group_commit import Appender
from orisun_server.storage.survey import LongLookups, Seen, Survey

KEYS = ("account", "kind", "eventType")
VALUES = ('"a"', '"b"', "1", "1.0", "1e0", "true", "null", '{"y":1,"x":[1, 2]}', '"T1"')
TEXTS = ("a", "b", "1", "1.0", "true", '{"x": [1, 2], "y": 1}', "T1", "T2")


@dataclass(frozen=True)
class Asked:
    """A call before its expected position is known: ``expect`` says how to come by it."""

    events: tuple[NewEvent, ...]
    criteria: tuple[tuple[tuple[str, str], ...], ...] | None
    expect: str


class NoIndexes:
    def ready(self, _: str) -> tuple[()]:
        return ()


events = st.builds(
    lambda number, kind, pairs: NewEvent(
        f"id-{number}", kind, "{" + ",".join(f'"{key}":{value}' for key, value in pairs.items()) + "}", "{}"
    ),
    st.integers(0, 40),
    st.sampled_from(["T1", "T2"]),
    st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=2),
)
tags = st.tuples(st.sampled_from([*KEYS, "event_type"]), st.sampled_from(TEXTS))
asked = st.builds(
    Asked,
    st.lists(events, min_size=1, max_size=3, unique_by=lambda event: event.event_id).map(tuple),
    st.none() | st.lists(st.lists(tags, max_size=2).map(tuple), max_size=2).map(tuple),
    st.sampled_from(["actual", "actual", "actual", "nothing", "first", "beyond"]),
)


async def _answer(appender: Appender, boundary: Boundary, call: Asked, expected: Position) -> object:
    context = None if call.criteria is None else Context(expected, query(call.criteria))
    try:
        return await appender.append(boundary, call.events, context)
    except OrisunError as error:
        return type(error).__name__, str(error)


async def _latest(
    database: Database, boundary: Boundary, criteria: tuple[tuple[tuple[str, str], ...], ...]
) -> Position:
    """The context's latest position by the plainest SQL there is."""
    normal = query(criteria)
    conditions, values = ["true"] if not normal else [], []
    for criterion in normal:
        parts = []
        for key, value in criterion:
            values.append(value)
            left = "event_type" if key == "eventType" else f"data->>'{key}'"
            parts.append(f"{left} = ${len(values)}")
        conditions.append("(" + " AND ".join(parts) + ")")
    row = await database.read.fetchrow(
        f"SELECT transaction_id, global_id FROM {boundary.names.q_events} WHERE {' OR '.join(conditions)} "
        "ORDER BY global_id DESC LIMIT 1",
        *values,
    )
    return Position(*row) if row else NOTHING


async def _empty(database: Database, boundary: Boundary) -> None:
    await database.write.execute(f"DELETE FROM {boundary.names.q_events}")
    await database.write.execute("SELECT setval($1::regclass, 0, false)", boundary.names.q_sequence)


class Before(Survey):
    """Knows what was seen of all criteria before any of the calls, and takes no time: these keep their order."""

    seen: Mapping[Criterion, Seen]

    @classmethod
    async def looked(cls, database: Database, appender: Appender, boundary: Boundary, calls: list[Asked]) -> Before:
        before = cls(database)
        wanted = [criterion for call in calls for criterion in query(call.criteria or ()) if criterion]
        before.seen = await Survey(database)(boundary, tuple(wanted), appender._lane(boundary).long_lookups)
        return before

    async def __call__(self, boundary: Boundary, query: Query, long_lookups: LongLookups) -> Mapping[Criterion, Seen]:
        return {criterion: self.seen[criterion] for criterion, _ in long_lookups(query)}


async def _compare(database: Database, boundary: Boundary, calls: list[Asked]) -> None:
    appender = Appender(database, NoIndexes())
    await _empty(database, boundary)
    one_by_one, expectations = [], []
    for call in calls:
        actual = NOTHING if call.criteria is None else await _latest(database, boundary, call.criteria)
        expected = {"actual": actual, "nothing": NOTHING, "first": Position(1, 0), "beyond": Position(99, 98)}[
            call.expect
        ]
        expectations.append(expected)
        one_by_one.append(await _answer(appender, boundary, call, expected))
    content = f"SELECT global_id, transaction_id, event_id, event_type, data FROM {boundary.names.q_events} ORDER BY 1"
    stored = await database.read.fetch(content)

    await _empty(database, boundary)
    appender._survey = await Before.looked(database, appender, boundary, calls)
    together = await asyncio.gather(
        *(_answer(appender, boundary, call, expected) for call, expected in zip(calls, expectations, strict=True))
    )
    assert together == one_by_one
    assert await database.read.fetch(content) == stored


@pytest.mark.parametrize("short_log", [0, lane.SHORT_LOG], ids=["looked up before", "under the lock"])
async def test_a_group_answers_as_its_calls_one_by_one(
    database: Database, boundary: Boundary, short_log: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "SHORT_LOG", short_log)
    loop = asyncio.get_running_loop()

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(asked, min_size=2, max_size=12))
    def run(calls: list[Asked]) -> None:
        asyncio.run_coroutine_threadsafe(_compare(database, boundary, calls), loop).result(60)

    await asyncio.to_thread(run)
