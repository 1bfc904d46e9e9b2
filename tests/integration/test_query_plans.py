"""Reads and context checks touch what they return and little else, whatever the planner knows when it plans.

Measured in buffers that a statement touches, on 100,000 events, under custom, generic and automatically chosen plans;
also with plans that were made while the table was empty or held a few rows.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any

import asyncpg
import pytest

from orisun_server.core.append import Context, checked_events
from orisun_server.core.criteria import Criterion, Query, criterion, query
from orisun_server.core.event import NewEvent
from orisun_server.core.position import Position
from orisun_server.delivery import lookout
from orisun_server.settings import Settings
from orisun_server.storage import counts, insight, read_sql
from orisun_server.storage.counts import EventCounts
from orisun_server.storage.criteria_sql import Plans as Kinds
from orisun_server.storage.criteria_sql import access, latest_sql
from orisun_server.storage.flush import Flush
from orisun_server.storage.names import literal
from orisun_server.storage.read_sql import Statement
from tests.integration.stores import BOOLEAN, NUMERIC, TIMESTAMPTZ, Store, index

EVENTS = 100_000
MODES = ("force_custom_plan", "force_generic_plan", "auto")
#: Buffers (8 kB) of a probe, and of a page of 100 events that lie scattered.
PROBE, PAGE = 20, 150

INDEXES = (
    index("user", "user"),
    index("half", "half"),
    index("type", "eventType"),
    index("category_priority", "category", "priority"),
    index("placed_amount", ("amount", NUMERIC), where=(("eventType", "=", "Placed"),)),
    index("number", ("number", NUMERIC)),
    index("flag", ("flag", BOOLEAN)),
    index("at", ("at", TIMESTAMPTZ)),
    index("large", "total", where=(("total", ">", "100"), ("vip", "=", "true")), combinator="OR"),
    index("middle", "grade", where=(("grade", ">=", "g2"), ("grade", "<", "g5"), ("grade", "<=", "g9"))),
)

#: half of the events, the older one, share the values of "half" and "flag"
_EVENTS = """
INSERT INTO {table}
SELECT g, g / 10 * 10 + 10, pg_current_xact_id(), 'e' || g, CASE g % 3 WHEN 0 THEN 'Placed' ELSE 'Other' END,
       jsonb_build_object(
           'user', 'u' || g / 100, 'half', CASE WHEN g < 50000 THEN 'old' ELSE 'x' || g END, 'flag', g < 50000,
           'category', 'c' || g % 10, 'priority', 'p' || g % 7, 'amount', g, 'number', g,
           'at', to_char(timestamp '2024-01-01' + g * interval '1 second', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
           'grade', 'g' || g % 1000, 'total', g % 1000, 'vip', g % 2 = 0, 'padding', repeat('x', 100)),
       '{{}}', now()
FROM generate_series({first}, {last}) AS g
"""

CASES: dict[str, Criterion] = {
    name: criterion(tags.items())
    for name, tags in {
        "rare": {"user": "u5"},
        "missing": {"user": "nobody"},
        "half, and old": {"half": "old"},
        "type": {"eventType": "Other"},
        "missing type": {"eventType": "Never"},
        "composite": {"category": "c3", "priority": "p2"},
        "missing composite": {"category": "c3", "priority": "p9"},
        "partial and numeric": {"eventType": "Placed", "amount": "30"},
        "missing partial": {"eventType": "Placed", "amount": "31"},
        "numeric": {"number": "77"},
        "missing numeric": {"number": "-77"},
        "boolean": {"flag": "true"},
        "other boolean": {"flag": "false"},
        "time": {"at": "2024-01-01T00:10:00Z"},
        "missing time": {"at": "2023-01-01T00:10:00Z"},
        "partial by OR": {"total": "500"},
        "partial by OR, other side": {"total": "5", "vip": "true"},
        "partial by AND": {"grade": "g2"},
        "long": {"user": "u" * 100_000},
    }.items()
}
EITHER = query([[("user", "u5")], [("user", "u999")], [("user", "nobody")], [("half", "old")], [("number", "9")]])


class Plans:
    """Prepared statements of one session, and what executing them touches."""

    def __init__(self, store: Store, connection: asyncpg.Connection) -> None:
        self.boundary, self.table = store.boundary, store.boundary.names.q_events
        self.counts = EventCounts(store.database, store.settings.admin_schema)
        self._connection = connection
        self._prepared: dict[tuple[str, str], str] = {}

    async def add(self, first: int, last: int) -> None:
        await self._connection.execute(_EVENTS.format(table=self.table, first=first, last=last))

    async def execute(self, sql: str) -> None:
        await self._connection.execute(sql)

    async def explain(self, sql: str, arguments: list[object], mode: str) -> dict[str, Any]:
        """EXPLAIN (ANALYZE, BUFFERS) of a statement that is prepared once for a mode."""
        name = self._prepared.get((sql, mode))
        await self._connection.execute(f"SET plan_cache_mode = {mode}")
        execute = f"({', '.join(map(_literal, arguments))})" if arguments else ""
        if name is None:
            name = self._prepared[sql, mode] = f"p{len(self._prepared)}"
            await self._connection.execute(f"PREPARE {name} AS {sql}")
            # after five executions the automatic mode may take the generic plan
            for _ in range(10 if mode == "auto" else 0):
                await self._connection.execute(f"EXECUTE {name}{execute}")
        text = await self._connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {name}{execute}")
        return dict(json.loads(text)[0]["Plan"])

    async def touches_at_most(self, buffers: int, what: str, statement: Statement, sql: str) -> None:
        for mode in MODES:
            plan = await self.explain(sql, statement.arguments, mode)
            touched = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
            assert touched <= buffers, f"{what}, {mode}: {touched} buffers\n{_outline(plan)}"

    async def check_contexts(self, cases: Mapping[str, Criterion], *, most: int | None = None, times: int = 1) -> None:
        """Flush an event for each context, all of which have changed, touching at most so many buffers."""
        for number in range(times):
            flush = Flush(self.boundary, Kinds(INDEXES))
            for one in cases.values():
                event = NewEvent(secrets.token_hex(12), "Placed", "{}", "{}")
                flush.add(checked_events([event], 1), Context(Position(2**40, number), (one,)))
            text = await self._connection.fetchval(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {flush.statement}", *flush.arguments()
            )
            plan = json.loads(text)[0]["Plan"]
            touched = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
            assert most is None or touched <= most, f"append under {', '.join(cases)}: {touched} buffers"

    async def check_all(self) -> None:
        """Every kind of statement for every case."""
        for name, one in CASES.items():
            plan = access(one, INDEXES)
            assert plan.indexed, name
            # as the append function asks, for a group of contexts of one shape
            statement = Statement(self.table)
            arrays = ", ".join(statement.add([value, value], "text[]") for value in plan.values)
            columns = [f"v{number}" for number in range(len(plan.values))]
            probe = latest_sql(self.table, plan, [f"c.{column}" for column in columns])
            sql = f"SELECT * FROM unnest({arrays}) AS c({', '.join(columns)}) LEFT JOIN LATERAL ({probe}) AS m ON true"
            await self.touches_at_most(2 * PROBE, f"context check, {name}", statement, sql)
            statement = Statement(self.table)
            await self.touches_at_most(PROBE, f"latest, {name}", statement, read_sql.latest(statement, [plan]))
            await self.check_pages(name, (one,), PAGE)
        statement = Statement(self.table)
        latest = read_sql.latest(statement, [access(one, INDEXES) for one in EITHER])
        await self.touches_at_most(len(EITHER) * PROBE, "latest of several", statement, latest)
        # ids of each criterion, then the rows
        await self.check_pages("OR", EITHER, len(EITHER) * PAGE + 4 * 100)
        await self.check_pages("whole boundary", (), PAGE)
        for after in (Position(-1, -1), Position(5000, 17), Position(EVENTS, EVENTS - 1), Position(2**62, 5)):
            statement = Statement(self.table)
            block = read_sql.block(statement, after, 1000)
            await self.touches_at_most(300, f"block after {after}", statement, block)
            statement = Statement(self.table)
            await self.touches_at_most(PROBE, f"look at {after}", statement, read_sql.look(statement, after))
            await self.touches_at_most(PROBE, f"lookout at {after}", *_lookout(self.table, after))
        statement = Statement(self.table)
        behind = _numbered(statement, self.counts._sql(counts._BEHIND, self.boundary), self.boundary.name)
        await self.touches_at_most(PROBE, "behind", statement, behind)
        statement = Statement(self.table)
        progress = _numbered(statement, insight._progress_sql(1, self.boundary), self.boundary.name)
        await self.touches_at_most(PROBE, "progress", statement, progress)
        await self.touches_at_most(PROBE, "head", Statement(self.table), read_sql.head(self.table))

    async def check_pages(self, name: str, asked: Query, most: int) -> None:
        accesses = [access(one, INDEXES) for one in asked]
        for descending in (False, True):
            for bound in (None, Position(5000, 17), Position(EVENTS // 2, 3), Position(2**62, 2**62)):
                statement = Statement(self.table)
                select, order = read_sql.rows(statement, accesses, count=100, descending=descending, bound=bound)
                sql = read_sql.bounded(statement, select, order, max_bytes=2**26, descending=descending)
                what = f"page, {name}, {'descending' if descending else 'ascending'} from {bound}"
                await self.touches_at_most(most + (bound is not None) * 100, what, statement, sql)


@pytest.fixture
async def plans(settings: Settings) -> AsyncIterator[Plans]:
    async with Store(settings) as store:
        await store.create(*INDEXES)
        table = store.boundary.names.q_events
        # nothing may depend on the statistics being there in time
        await store.database.admin.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
        connection = await store.database.dedicated_connection()
        try:
            yield Plans(store, connection)
        finally:
            await connection.close()


async def test_with_statistics(plans: Plans) -> None:
    await plans.add(0, EVENTS - 1)
    await plans.execute(f"VACUUM ANALYZE {plans.table}")
    await plans.check_all()


async def test_without_statistics(plans: Plans) -> None:
    await plans.add(0, EVENTS - 1)
    await plans.check_all()


@pytest.mark.parametrize(("rows", "analyze"), [(0, False), (10, True), (1000, True)])
async def test_with_plans_from_when_the_table_was_small(plans: Plans, rows: int, analyze: bool) -> None:
    if rows:
        await plans.add(0, rows - 1)
    if analyze:
        await plans.execute(f"VACUUM ANALYZE {plans.table}")
    await plans.check_all()
    await plans.add(rows, EVENTS - 1)
    await plans.check_all()


@pytest.mark.parametrize(("rows", "analyzed"), [(0, False), (0, True), (1, True), (10, True)])
async def test_the_context_checks_of_an_append(plans: Plans, rows: int, analyzed: bool) -> None:
    """The append function itself, in a session that has used it since the table was as good as empty."""
    if rows:
        await plans.add(0, rows - 1)
    if analyzed:
        await plans.execute(f"VACUUM ANALYZE {plans.table}")
    await plans.check_contexts(CASES, times=20)
    await plans.add(rows, EVENTS - 1)
    for analyze in (False, True):
        if analyze:
            await plans.execute(f"VACUUM ANALYZE {plans.table}")
        for name, one in CASES.items():
            await plans.check_contexts(
                {name: one}
            )  # the first to come reads PostgreSQL's catalog, where it has changed
            await plans.check_contexts({name: one}, most=PROBE)
        await plans.check_contexts(CASES, most=len(CASES) * PROBE)
        # criteria of one shape share a probe
        alike = {value: criterion([("user", value)]) for value in ("u5", "u6", "u7")}
        await plans.check_contexts(alike, most=len(alike) * PROBE)


@pytest.mark.parametrize("analyze", [False, True])
async def test_a_count_reads_what_the_projection_has_not_counted(plans: Plans, analyze: bool) -> None:
    await plans.add(0, EVENTS - 11)
    await plans.counts.advance(plans.boundary)
    await plans.add(EVENTS - 10, EVENTS - 1)
    if analyze:
        await plans.execute(f"VACUUM ANALYZE {plans.table}")
    for name, kind in (("read", counts._READ), ("advance", counts._ADVANCE)):
        statement = Statement(plans.table)
        sql = _numbered(statement, plans.counts._sql(kind, plans.boundary), plans.boundary.name)
        await plans.touches_at_most(PROBE, name, statement, sql)
    assert await plans.counts.count(plans.boundary) == EVENTS


def _numbered(statement: Statement, sql: str, name: str) -> str:
    """SQL whose $1 is a boundary's name, of which the type need not be said."""
    return sql.replace("$1", statement.add(name, "text"))


def _lookout(table: str, position: Position) -> tuple[Statement, str]:
    statement = Statement(table)
    for part in position:
        statement.add([part], "bigint[]")
    return statement, lookout._look_sql(1, table)


def _literal(value: object) -> str:
    match value:
        case str():
            return literal(value)
        case list():
            return f"ARRAY[{', '.join(map(_literal, value))}]"
        case _:
            return str(value)


def _outline(plan: dict[str, Any], depth: int = 0) -> str:
    name = plan.get("Index Name", plan.get("Relation Name", ""))
    touched = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    lines = [f"{'  ' * depth}{plan['Node Type']} {name} rows={plan['Actual Rows']} buffers={touched}"]
    return "\n".join(lines + [_outline(child, depth + 1) for child in plan.get("Plans", [])])
