"""The SQL of reads: pages of events after or before a position, within a number of rows and of bytes.

Statements depend on shapes alone (keys, which indexes serve, direction, orders of magnitude), never on values, so that
a connection prepares each once.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..core.position import Position
from .criteria_sql import Access, access, latest_sql, order_by

#: The fields of core.event.Event, in their order.
COLUMNS = "transaction_id, global_id, event_id, event_type, data, metadata, date_created"
_TEXTS = COLUMNS.replace("data, metadata", "data::text AS data, metadata::text AS metadata")

_ALL = access((), ())
#: A condition that holds for every event and keeps the planner on the primary key, also in a plan that lives on while
#: its table grows from nothing.
ANY_ROW = _ALL.condition([])
_MAX_BIGINT = 2**63 - 1
#: So many criteria of a shape are an array, of whose length the planner knows nothing; fewer are as many rows.
_FEW = 10

#: Bytes of jsonb for one byte of its text, at most. (An array of small numbers takes four.)
_JSONB_OVERHEAD = 8


class Statement:
    """A statement in the making: numbers its parameters as they are added."""

    def __init__(self, table: str) -> None:
        self.table = table
        self.arguments: list[object] = []

    def add(self, value: object, kind: str) -> str:
        self.arguments.append(value)
        return f"${len(self.arguments)}::{kind}"


def normalized(position: Position, *, exclusive: bool) -> Position:
    """The position P for which "at or after P" means the given one; within bigint, and at least (0, 0)."""
    commit, prepare = position
    return Position(max(commit, 0), min(max(prepare + exclusive, 0), _MAX_BIGINT))


def rows(
    statement: Statement,
    accesses: Sequence[Access],
    *,
    count: int,
    descending: bool = False,
    bound: Position | None = None,
    first: int | None = None,
    last: int | None = None,
) -> tuple[str, tuple[str, ...]]:
    """SELECT of up to ``count`` events, and the columns of its order.

    ``accesses``: one for each criterion, () for the whole boundary. ``bound``: only positions at or after it
    (ascending) or before it (descending). ``first``, ``last``: only these global_ids.
    """
    accesses = accesses or [_ALL]
    if not all(one.indexed for one in accesses):
        ordered = sorted(accesses, key=lambda one: one.key)
        where = [f"({' OR '.join(f'({_condition(statement, one)})' for one in ordered)})", ANY_ROW]
        if bound is not None:
            where.append(f"global_id {'<' if descending else '>='} {bound_sql(statement, bound)}")
        for comparison, value in ((">=", first), ("<=", last)):
            if value is not None:
                where.append(f"global_id {comparison} {statement.add(value, 'bigint')}")
        by = order_by(("global_id",), descending=descending)
        return _limited(statement, _select(COLUMNS, statement.table, where), by, count), ("global_id",)
    order = ("transaction_id", "global_id")
    by = order_by(order, descending=descending)
    after = [] if bound is None else [_beyond(statement, bound, descending=descending)]
    if len(accesses) == 1:
        where = [_condition(statement, accesses[0]), *after]
        return _limited(statement, _select(COLUMNS, statement.table, where), by, count), order
    # One bounded probe for each criterion; an event that several criteria match is taken once.
    probes = []
    for shape, members in _shapes(accesses):
        source, parameters = _values(statement, members)
        select = _select(", ".join(order), statement.table, [shape.condition(parameters), *after])
        probe = _limited(statement, select, by, count)
        probes.append(f"SELECT m.* FROM {source} CROSS JOIN LATERAL ({probe}) AS m")
    found = f"SELECT DISTINCT {', '.join(order)} FROM ({' UNION ALL '.join(probes)}) AS found"
    ids = _limited(statement, found, by, count)
    # LIMIT keeps this a probe of the primary key for each id, at any size of table.
    row = _select(COLUMNS, statement.table, ["global_id = ids.global_id", ANY_ROW])
    return (
        f"SELECT e.* FROM ({ids}) AS ids CROSS JOIN LATERAL ({row} LIMIT 1) AS e ORDER BY {_in('ids', by)}",
        order,
    )


def bounded(
    statement: Statement, select: str, order: Sequence[str], *, max_bytes: int, descending: bool = False
) -> str:
    """The rows of a select up to the one with which ``data`` and ``metadata`` reach ``max_bytes``, at least one row.

    Texts are measured, since jsonb may be stored compressed; what is stored is measured first, so that not all rows are
    decompressed in vain.
    """
    limit = statement.add(max_bytes, "bigint")
    by = order_by(order, descending=descending)
    window = f"OVER (ORDER BY {by} ROWS UNBOUNDED PRECEDING)"

    def cut(columns: str, size: str, source: str, factor: int) -> str:
        sizes = f"{size}(data) + {size}(metadata)"
        # the order is said again at each level, so that the planner knows it and sorts nothing
        before = f"SELECT *, sum({sizes}) {window} - ({sizes}) AS before FROM ({source}) AS read ORDER BY {by}"
        return f"SELECT {columns} FROM ({before}) AS measured WHERE before < {limit} * {factor} ORDER BY {by}"

    stored = cut(_TEXTS, "pg_column_size", select, _JSONB_OVERHEAD)
    return cut(COLUMNS, "octet_length", f"{stored} OFFSET 0", 1)


def latest(statement: Statement, accesses: Sequence[Access]) -> str:
    """SELECT of the latest event of each criterion that has one: the criterion's number, and the event's columns."""
    probes = []
    for shape, members in _shapes(accesses):
        source, parameters = _values(statement, members)
        probe = latest_sql(statement.table, shape, parameters, COLUMNS)
        probes.append(f"SELECT c.number, m.* FROM {source} CROSS JOIN LATERAL ({probe}) AS m")
    return " UNION ALL ".join(probes)


def commands(statement: Statement, after: Position, count: int, max_bytes: int, *, descending: bool = False) -> str:
    """SELECT of the commands after a position, or before it, the latest first; those beyond ``max_bytes`` are left out,
    but for the first of them."""
    beyond, direction = ("<", " DESC") if descending else (">", "")
    commit, prepare = statement.add(after.commit, "bigint"), statement.add(after.prepare, "bigint")
    limit, size = statement.add(count, "bigint"), statement.add(max_bytes, "bigint")
    return (
        "SELECT transaction_id, global_id, command_id, command_type, data, metadata, date_created FROM ("
        f" SELECT *, sum(size) OVER (ORDER BY transaction_id{direction}) - size AS before FROM ("
        "  SELECT transaction_id, global_id, command_id, command_type, data::text, metadata::text, date_created,"
        "   octet_length(data::text) + octet_length(metadata::text) AS size"
        f"  FROM {statement.table} WHERE (transaction_id, global_id) {beyond} ({commit}, {prepare})"
        f"  ORDER BY transaction_id{direction} LIMIT {limit}) AS page) AS sized WHERE before <= {size}"
        f" ORDER BY transaction_id{direction}"
    )


def head(table: str) -> str:
    """SELECT of the last position of a boundary, or no row."""
    return latest_sql(table, _ALL, [])


def look(statement: Statement, position: Position) -> str:
    """One row: the id of the event at a position, and the last position of the boundary; NULL for what there is not."""
    commit, prepare = statement.add(position.commit, "bigint"), statement.add(position.prepare, "bigint")
    return (
        f"SELECT (SELECT event_id FROM {statement.table} "
        f"WHERE global_id = {prepare} AND transaction_id = {commit} AND {ANY_ROW}),"
        f" h.transaction_id, h.global_id FROM (SELECT) AS always LEFT JOIN ({head(statement.table)}) AS h ON true"
    )


def block(statement: Statement, after: Position, size: int) -> str:
    """One row: the global_id that follows ``after``, and the position of the last of the ``size`` events from there;
    of the head, and ``at_head`` true, where there are fewer. The position is NULL in an empty boundary."""
    offset = statement.add(size - 1, "bigint")
    where = ["global_id >= f.first", ANY_ROW]
    end = f"{_select('transaction_id, global_id', statement.table, where)} ORDER BY global_id LIMIT 1 OFFSET {offset}"
    return (
        "SELECT f.first, coalesce(e.transaction_id, h.transaction_id), coalesce(e.global_id, h.global_id), "
        "e.global_id IS NULL OR e.global_id = h.global_id "
        f"FROM (SELECT {bound_sql(statement, normalized(after, exclusive=True))} AS first) AS f "
        f"LEFT JOIN LATERAL ({end}) AS e ON true LEFT JOIN ({head(statement.table)}) AS h ON true"
    )


def bound_sql(statement: Statement, position: Position) -> str:
    """The least global_id from which on all positions are at or after the given one, which may be any.

    Positions are monotone in global_id, and an event's commit is greater than its prepare, so the answer is at most
    ``commit``: a binary search along the primary key, some thirty probes. No probe reads more than one row. A position
    of an event, or next to one, takes one probe.
    """
    if position.commit == 0:
        return "0"
    commit, prepare = statement.add(position.commit, "bigint"), statement.add(position.prepare, "bigint")
    table = statement.table
    return (
        f"(SELECT CASE WHEN {commit} IN (SELECT transaction_id FROM (SELECT transaction_id FROM {table} "
        f"WHERE global_id >= {prepare} - 1 AND global_id <= {prepare} AND {ANY_ROW} "
        "ORDER BY global_id LIMIT 2) AS near) "
        f"THEN {prepare} ELSE ("
        "WITH RECURSIVE search(low, high) AS ("
        f"SELECT 0::bigint, coalesce((SELECT least({commit}, global_id + 1) FROM {table} WHERE {ANY_ROW} "
        "ORDER BY global_id DESC LIMIT 1), 0) "
        "UNION ALL "
        "SELECT CASE WHEN r.before THEN r.global_id + 1 ELSE s.low END, "
        "CASE WHEN r.before THEN s.high ELSE m.middle END "
        "FROM search AS s CROSS JOIN LATERAL (SELECT (s.low + s.high) / 2 AS middle) AS m "
        f"CROSS JOIN LATERAL (SELECT global_id, (transaction_id, global_id) < ({commit}, {prepare}) AS before "
        f"FROM {table} WHERE global_id >= m.middle AND {ANY_ROW} ORDER BY global_id LIMIT 1) AS r "
        "WHERE s.low < s.high) SELECT max(low) FROM search) END)"
    )


def _select(columns: str, table: str, where: Sequence[str]) -> str:
    return f"SELECT {columns} FROM {table} WHERE {' AND '.join(where)}"


def _limited(statement: Statement, select: str, order: str, count: int) -> str:
    """The first ``count`` rows. A generic plan takes an unknown LIMIT for a tenth of the table, so that custom plans
    look better and every execution is planned again; therefore the order of magnitude is part of the statement."""
    most = 10 ** len(str(count - 1))
    limited = f"{select} ORDER BY {order} LIMIT {most}"
    return limited if count == most else f"SELECT * FROM ({limited}) AS most LIMIT {statement.add(count, 'bigint')}"


def _condition(statement: Statement, one: Access) -> str:
    return one.condition([statement.add(value, "text") for value in one.values])


def _beyond(statement: Statement, bound: Position, *, descending: bool) -> str:
    commit, prepare = statement.add(bound.commit, "bigint"), statement.add(bound.prepare, "bigint")
    return f"(transaction_id, global_id) {'<' if descending else '>='} ({commit}, {prepare})"


def _shapes(accesses: Sequence[Access]) -> list[tuple[Access, list[tuple[int, Access]]]]:
    """The shapes, in an order that does not depend on the accesses', and the members of each with their numbers."""
    shapes: dict[str, list[tuple[int, Access]]] = {}
    for number, one in enumerate(accesses):
        shapes.setdefault(one.key, []).append((number, one))
    return [(members[0][1], members) for _, members in sorted(shapes.items())]


def _values(statement: Statement, members: Sequence[tuple[int, Access]]) -> tuple[str, list[str]]:
    """A FROM item ``c`` with one row for each member: a column ``number`` and one for each value; and these."""
    names = [f"v{number}" for number in range(len(members[0][1].values))]
    listed = ", ".join(["number", *names])
    if len(members) < _FEW:
        rows = ", ".join(
            f"({', '.join([statement.add(number, 'int'), *(statement.add(value, 'text') for value in one.values)])})"
            for number, one in members
        )
        source = f"(VALUES {rows}) AS c({listed})"
    else:
        columns = zip(*(one.values for _, one in members), strict=True)
        arrays = [statement.add([number for number, _ in members], "int[]")]
        arrays += [statement.add(list(column), "text[]") for column in columns]
        source = f"unnest({', '.join(arrays)}) AS c({listed})"
    return source, [f"c.{name}" for name in names]


def _in(table: str, columns: str) -> str:
    return ", ".join(f"{table}.{column}" for column in columns.split(", "))
