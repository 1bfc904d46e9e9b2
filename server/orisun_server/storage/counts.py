"""How many events a boundary has: the projection 'event_count'.

Its checkpoint says up to which event it has counted, so an answer is that count and the few events since, read in one
snapshot: exact however late the projection is, and as fast as it is punctual. Count and checkpoint change in one
statement that does nothing when another server was faster.
"""

from __future__ import annotations

from collections.abc import Sequence

from .catalog import Boundary
from .database import Database
from .names import literal, quote
from .read_sql import ANY_ROW, head

#: Name of the projection, in {boundary}_projector_checkpoint.
NAME = "event_count"

_CHECKPOINT = literal(NAME)

# No row before the first reset. A checkpoint whose event is gone is of another history (a restore of some tables only).
_READ = """
SELECT c.prepare_position < 0 OR c.commit_position IN (
           SELECT transaction_id FROM (SELECT transaction_id FROM {events}
                                       WHERE global_id = c.prepare_position AND {rows} LIMIT 1) AS known),
       n.events + (SELECT count(*) FROM {events} WHERE global_id > c.prepare_position AND {rows})
FROM {checkpoints} AS c JOIN {counts} AS n ON n.boundary = $1
WHERE c.name = {name}
"""

_ADVANCE = """
WITH known AS MATERIALIZED (SELECT prepare_position FROM {checkpoints} WHERE name = {name}),
added AS MATERIALIZED (
    SELECT count(*) AS events, max(transaction_id) AS commit, max(global_id) AS prepare
    FROM {events} WHERE global_id > (SELECT prepare_position FROM known) AND {rows}
),
moved AS (
    UPDATE {checkpoints} AS c
    SET commit_position = added.commit, prepare_position = added.prepare, updated_at = clock_timestamp()
    FROM added, known
    WHERE c.name = {name} AND c.prepare_position = known.prepare_position AND added.prepare IS NOT NULL
    RETURNING added.events
)
UPDATE {counts} AS n SET events = n.events + moved.events FROM moved WHERE n.boundary = $1
"""

_RESET = """
WITH counted AS MATERIALIZED (
    SELECT count(*) AS events, coalesce(max(transaction_id), -1) AS commit, coalesce(max(global_id), -1) AS prepare
    FROM {events}
),
moved AS (
    INSERT INTO {checkpoints} (name, commit_position, prepare_position)
    SELECT {name}, counted.commit, counted.prepare FROM counted
    ON CONFLICT (name) DO UPDATE SET commit_position = excluded.commit_position,
        prepare_position = excluded.prepare_position, updated_at = clock_timestamp()
    RETURNING name
)
INSERT INTO {counts} (boundary, events) SELECT $1, counted.events FROM counted, moved
ON CONFLICT (boundary) DO UPDATE SET events = excluded.events
"""


# A row where the count has not reached the last event, or has another history's.
_BEHIND = """
SELECT ${number}::text AS boundary
WHERE NOT EXISTS (
    SELECT FROM {checkpoints} AS c JOIN {counts} AS n ON n.boundary = ${number}
    LEFT JOIN LATERAL ({head}) AS head ON true
    WHERE c.name = {name} AND c.prepare_position = coalesce(head.global_id, -1)
        AND c.commit_position = coalesce(head.transaction_id, -1)
)
"""
#: Boundaries of one statement.
_CHUNK = 20


class EventCounts:
    """Counts of events, for all boundaries. Everything raises Unavailable without PostgreSQL."""

    def __init__(self, database: Database, admin_schema: str) -> None:
        """``admin_schema`` is the admin schema's name, unquoted."""
        self._database = database
        self._counts = f"{quote(admin_schema)}.orisun_event_count"

    async def count(self, boundary: Boundary) -> int:
        """How many events the boundary has at this moment; reads all of them once in its life."""
        known = await self._read(boundary)
        if known is None:
            await self._execute(_RESET, boundary)
            known = await self._read(boundary)
        return known or 0

    async def advance(self, boundary: Boundary) -> None:
        """Count what came since the checkpoint, and move it there."""
        if await self._read(boundary) is None:
            await self._execute(_RESET, boundary)
        else:
            await self._execute(_ADVANCE, boundary)

    async def behind(self, boundaries: Sequence[Boundary]) -> set[str]:
        """The names of those that have events which are not counted yet; a few statements for hundreds of them."""
        found: set[str] = set()
        for start in range(0, len(boundaries), _CHUNK):
            chunk = boundaries[start : start + _CHUNK]
            arms = (self._sql(_BEHIND, one, number=number) for number, one in enumerate(chunk, start=1))
            with self._database.guard():
                rows = await self._database.admin.fetch("UNION ALL".join(arms), *(one.name for one in chunk))
            found.update(row["boundary"] for row in rows)
        return found

    async def _read(self, boundary: Boundary) -> int | None:
        with self._database.guard():
            row = await self._database.read.fetchrow(self._sql(_READ, boundary), boundary.name)
        return int(row[1]) if row is not None and row[0] else None

    async def _execute(self, statement: str, boundary: Boundary) -> None:
        with self._database.guard():
            await self._database.admin.execute(self._sql(statement, boundary), boundary.name)

    def _sql(self, statement: str, boundary: Boundary, *, number: int = 1) -> str:
        names = boundary.names
        return statement.format(
            events=names.q_events,
            head=head(names.q_events),
            checkpoints=names.q_checkpoints,
            counts=self._counts,
            name=_CHECKPOINT,
            rows=ANY_ROW,
            number=number,
        )
