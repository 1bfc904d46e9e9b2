"""One definition of matching: Python's matcher of live events against SQL, with and without indexes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orisun_server.core.criteria import Query, query
from orisun_server.core.matching import Matcher, top_level, value_text
from orisun_server.storage.catalog import Boundary
from orisun_server.storage.database import Database
from orisun_server.storage.index_sql import OPERATORS, IndexCondition, IndexDefinition, IndexField, ValueType, text_sql
from orisun_server.storage.reads import Reader

KEYS = ("a", "b", 'it\'s \\ "b"', "é", "")

#: no NUL and no lone surrogates, which PostgreSQL does not store
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)
numbers = st.sampled_from(
    ["0", "-0", "7", "1.5", "1.50", "1000000", "1e6", "0.00001", "1E-5", "-12.30e2", "9" * 40, "1e35", "0." + "3" * 40]
) | st.decimals(allow_nan=False, allow_infinity=False).map(lambda number: f"{number:f}"[:200].rstrip("."))
times = st.builds(
    "{}-{:02}-{:02}{}{:02}:{:02}{}{}".format,
    st.sampled_from(["0000", "0001", "2024", "9999", "10000"]),
    st.integers(0, 13),
    st.integers(0, 32),
    st.sampled_from(["T", " ", "t", ""]),
    st.integers(0, 25),
    st.integers(0, 61),
    st.sampled_from(["", ":00", ":59.9999999", ":60", ":5", ":30.1234567891"]),
    st.sampled_from(["", "Z", "z", "+05:30", "-1559", "+16:00", "+5"]),
)
#: texts of values that the typed indexes know
special = times | st.sampled_from(
    ["true", "false", "TRUE", "null", "NaN", "-1", "01", "1e5", "1\n", "x" * 499, "x" * 501]
)
#: JSON texts
values = st.one_of(
    numbers,
    st.sampled_from(["true", "false", "null", "{}", "[]", '{"b": 1, "aa": [1, 2.50, "x"], "a": null}', '["é", 1e3]']),
    (texts | special | numbers).map(json.dumps),
)
documents = st.dictionaries(st.sampled_from(KEYS), values, max_size=3).map(
    lambda document: "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in document.items()) + "}"
)
types = st.sampled_from(["Placed", "1", "true", "é"])
conditions = st.builds(
    IndexCondition,
    st.sampled_from([*KEYS, "eventType"]),
    st.sampled_from(OPERATORS),
    texts | special | numbers,
)
fields = st.lists(
    st.builds(IndexField, st.sampled_from([*KEYS, "eventType"]), st.sampled_from(ValueType)),
    min_size=1,
    max_size=3,
    unique_by=lambda field: field.key,
).map(tuple)
definitions = st.builds(
    IndexDefinition, st.just("x"), fields, st.lists(conditions, max_size=2).map(tuple), st.sampled_from(["AND", "OR"])
)


@dataclass
class Ready:
    """A boundary's READY indexes."""

    indexes: tuple[IndexDefinition, ...]

    def ready(self, _boundary: str) -> tuple[IndexDefinition, ...]:
        return self.indexes


async def _store(database: Database, boundary: Boundary, events: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Store events of these types and data; the same with the data as PostgreSQL prints it."""
    await database.write.execute(f"DELETE FROM {boundary.names.q_events}")
    rows = await database.write.fetch(
        f"INSERT INTO {boundary.names.q_events} "
        "SELECT n, n + 1, pg_current_xact_id(), n::text, t, d::jsonb, '{}', now() "
        "FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS e(t, d, n) RETURNING event_type, data",
        [one[0] for one in events],
        [one[1] for one in events],
    )
    return [(row[0], row[1]) for row in rows]


async def _found(database: Database, boundary: Boundary, asked: Query, *indexes: IndexDefinition) -> list[int]:
    reader = Reader(database, Ready(indexes))  # type: ignore[arg-type]
    return [event.prepare for event in await reader.page(boundary, asked, 1000)]


def _tags(events: list[tuple[str, str]], choose: Any) -> Query:
    """Criteria most of which match something, drawn from the values of the events."""
    known = [("eventType", kind) for kind, _ in events] + [
        (key, text)
        for _, data in events
        for key, raw in top_level(data).items()
        if (text := value_text(raw)) is not None
    ]
    tag = st.sampled_from(known) | st.tuples(st.sampled_from(KEYS), texts | special | numbers)
    return query(choose(st.lists(st.lists(tag, min_size=1, max_size=3), min_size=1, max_size=3)))


async def test_live_matching_is_what_a_read_matches(database: Database, boundary: Boundary) -> None:
    loop = asyncio.get_running_loop()

    def wait(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    async def build(index: IndexDefinition) -> str:
        name = index.pg_name(boundary.names, "")
        await database.write.execute(index.create_sql(boundary.names, name))
        return boundary.names.qualified(name)

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(types, documents), min_size=1, max_size=8), definitions, st.data())
    def run(events: list[tuple[str, str]], index: IndexDefinition, draw: st.DataObject) -> None:
        stored = wait(_store(database, boundary, events))
        asked = _tags(stored, draw.draw)
        matcher = Matcher(asked)
        expected = [n for n, (kind, data) in enumerate(stored, start=1) if matcher.matches(kind, data)]
        assert wait(_found(database, boundary, asked)) == expected
        name = wait(build(index))
        try:
            assert wait(_found(database, boundary, asked, index)) == expected
            # also where only the index can be read
            assert wait(_by_index_alone(database, boundary, asked, index)) == expected
        finally:
            wait(database.write.execute(f"DROP INDEX {name}"))

    await asyncio.to_thread(run)


async def _by_index_alone(database: Database, boundary: Boundary, asked: Query, index: IndexDefinition) -> list[int]:
    from orisun_server.storage.criteria_sql import access

    found: set[int] = set()
    async with database.read.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL enable_seqscan = off; SET LOCAL plan_cache_mode = force_generic_plan")
        for criterion in asked:
            plan = access(criterion, [index])
            condition = plan.condition([f"${n}" for n in range(1, len(plan.values) + 1)])
            sql = (
                f"SELECT global_id FROM {boundary.names.q_events} WHERE {condition} ORDER BY {plan.order()} LIMIT 1000"
            )
            found.update(row[0] for row in await connection.fetch(sql, *plan.values))
    return sorted(found)


async def test_python_knows_what_an_index_holds(database: Database, boundary: Boundary) -> None:
    loop = asyncio.get_running_loop()

    async def compare(document: str, condition: IndexCondition) -> None:
        ((kind, data),) = await _store(database, boundary, [("Placed", document)])
        raw = kind.encode() and top_level(data).get(condition.key)
        text = kind if condition.key == "eventType" else None if raw is None else value_text(raw)
        typed = [IndexDefinition("x", (IndexField(condition.key, value_type),)) for value_type in ValueType]
        keys = [one.key_sql(one.fields[0], text_sql(condition.key)) for one in typed]
        columns = ", ".join(f"({key}) IS NOT NULL" for key in keys)
        row = await database.read.fetchrow(
            f"SELECT coalesce({condition.sql()}, false), {columns} FROM {boundary.names.q_events}"
        )
        assert row[0] == (text is not None and condition.holds(text))
        assert list(row)[1:] == [text is not None and one.fields[0].converts(text) for one in typed]

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(documents, conditions)
    @example('{"a": "2024-02-31T00:00:00Z"}', IndexCondition("a", "<", "10"))
    @example('{"a": 10}', IndexCondition("a", "<", "9"))
    @example('{"a": "10 "}', IndexCondition("a", "<", "9"))
    @example('{"a": "B"}', IndexCondition("a", "<", "a"))
    @example('{"a": 10.0}', IndexCondition("a", "=", "10"))
    @example('{"a": "9999-12-31T23:59:59-15:59"}', IndexCondition("eventType", ">=", "P"))
    @example('{"a": "0001-01-01T00:00:00+15:59"}', IndexCondition("a", ">=", "P"))
    def run(document: str, condition: IndexCondition) -> None:
        asyncio.run_coroutine_threadsafe(compare(document, condition), loop).result(60)

    await asyncio.to_thread(run)
