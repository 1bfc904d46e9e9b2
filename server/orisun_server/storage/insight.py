"""What an administrator asks PostgreSQL about a running store: progress, nodes, leases, sizes, use of indexes.

Reads only, bounded, and through the pool of administration, so that looking never holds up appends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from ..core.position import NOTHING, Position
from .boundaries import Boundary
from .database import Database
from .names import quote
from .read_sql import ANY_ROW, head

#: Boundaries of one statement.
_CHUNK = 20

#: Seconds that one statement about progress gets.
_PATIENCE = 5.0

_PROGRESS = """
SELECT ${number}::text AS boundary, h.transaction_id AS head_commit, h.global_id AS head_prepare,
       p.transaction_id AS commit, p.global_id AS prepare, coalesce(p.event_count, 0) AS events,
       CASE WHEN h.global_id > coalesce(p.global_id, -1) THEN
           (SELECT extract(epoch FROM clock_timestamp() - e.date_created)::float8 FROM {events} AS e
            WHERE e.global_id > coalesce(p.global_id, -1) AND {rows} ORDER BY e.global_id LIMIT 1) END AS seconds
FROM (SELECT) AS always
LEFT JOIN LATERAL ({head}) AS h ON true
LEFT JOIN {published} AS p ON p.boundary = ${number}
"""

_INDEXES = """
SELECT c.relname AS name, pg_catalog.pg_relation_size(c.oid) AS bytes, s.idx_scan AS scans
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_index AS x ON x.indexrelid = c.oid
LEFT JOIN pg_catalog.pg_stat_user_indexes AS s ON s.indexrelid = c.oid
WHERE n.nspname = $1::text::name AND c.relname = ANY ($2::text[]::name[])
"""

_SIZES = """
SELECT pg_catalog.pg_table_size($1::text::regclass) AS events_bytes,
       pg_catalog.pg_indexes_size($1::text::regclass) AS indexes_bytes
"""


def _progress_sql(number: int, boundary: Boundary) -> str:
    names = boundary.names
    return _PROGRESS.format(
        number=number, events=names.q_events, published=names.q_published, head=head(names.q_events), rows=ANY_ROW
    )


class Progress(NamedTuple):
    """How far a boundary's log goes, and how far it is published."""

    boundary: str
    #: Position of the last event; NOTHING in an empty boundary.
    head: Position
    #: Position of the last published one.
    published: Position
    #: Seconds since the oldest event that is not published was stored; 0 when all are.
    lag_seconds: float

    @property
    def lag_events(self) -> int:
        """Events that are not published; numbers of failed calls may be counted in."""
        return max(0, self.head.prepare - self.published.prepare)


class Node(NamedTuple):
    """A server, or an operator, that lives."""

    node_id: str
    kind: str
    started_at: datetime


class Held(NamedTuple):
    """A lease that a living node holds."""

    boundary: str
    name: str
    node_id: str
    epoch: int
    acquired_at: datetime


class IndexUse(NamedTuple):
    """An index as PostgreSQL knows it."""

    bytes: int
    #: How often it was scanned since the statistics were reset.
    scans: int


class Insight:
    """Questions of administration; all raise Unavailable."""

    def __init__(self, database: Database, admin_schema: str) -> None:
        self._database, self._schema = database, quote(admin_schema)

    async def progress(self, boundaries: Sequence[Boundary]) -> dict[str, Progress]:
        """The progress of each boundary, by name."""
        found: dict[str, Progress] = {}
        for start in range(0, len(boundaries), _CHUNK):
            chunk = boundaries[start : start + _CHUNK]
            sql = "UNION ALL".join(f"({_progress_sql(number, b)})" for number, b in enumerate(chunk, start=1))
            with self._database.guard():
                async with asyncio.timeout(_PATIENCE):
                    rows = await self._database.admin.fetch(sql, *(boundary.name for boundary in chunk))
            for row in rows:
                head = NOTHING if row["head_prepare"] is None else Position(row["head_commit"], row["head_prepare"])
                published = NOTHING if row["prepare"] is None else Position(row["commit"], row["prepare"])
                seconds = max(0.0, row["seconds"] or 0.0)
                found[row["boundary"]] = Progress(row["boundary"], head, published, seconds)
        return found

    async def nodes(self) -> list[Node]:
        """The living nodes, the oldest first."""
        with self._database.guard():
            rows = await self._database.admin.fetch(
                f"SELECT node_id, kind, started_at FROM {self._schema}.orisun_node "
                "WHERE expires_at > clock_timestamp() ORDER BY started_at, node_id LIMIT 1000"
            )
        return [Node(*row) for row in rows]

    async def held(self, kind: str, *, boundary: str | None = None, limit: int = 1_000, offset: int = 0) -> list[Held]:
        """The leases of that kind, by boundary and name."""
        with self._database.guard():
            rows = await self._database.admin.fetch(
                f"SELECT l.boundary, l.name, l.node_id, l.epoch, l.acquired_at FROM {self._schema}.orisun_lease AS l "
                f"JOIN {self._schema}.orisun_node AS n ON n.node_id = l.node_id AND n.expires_at > clock_timestamp() "
                "WHERE l.kind = $1 AND ($2::text IS NULL OR l.boundary = $2) "
                "ORDER BY l.boundary, l.name LIMIT $3 OFFSET $4",
                *(kind, boundary, limit, offset),
            )
        return [Held(*row) for row in rows]

    async def sizes(self, boundary: Boundary) -> tuple[int, int]:
        """Bytes of a boundary's events, and of all their indexes."""
        with self._database.guard():
            row = await self._database.admin.fetchrow(_SIZES, boundary.names.q_events)
        return row["events_bytes"], row["indexes_bytes"]

    async def index_use(self, schema: str, pg_names: Sequence[str]) -> dict[str, IndexUse]:
        """Size and use of indexes, by their names in PostgreSQL; those that are not there (yet) are missing."""
        with self._database.guard():
            rows = await self._database.admin.fetch(_INDEXES, schema, list(pg_names))
        return {row["name"]: IndexUse(row["bytes"], row["scans"] or 0) for row in rows}
