"""What PostgreSQL tells about an index: its size and use, how far its build is, and whom the build waits for."""

from __future__ import annotations

from typing import NamedTuple

from .database import Database
from .index_catalog import IndexRecord
from .index_sql import create_prefix

#: Phases of CREATE INDEX CONCURRENTLY (PostgreSQL's documentation, "CREATE INDEX Progress Reporting"), each with the
#: part of the whole, in percent, at its beginning and end; the sizes are a rule of thumb: two scans of the table.
_PHASES = {
    "initializing": (0, 1),
    "waiting for writers before build": (1, 2),
    "building index": (2, 65),
    "building index: initializing": (2, 2),
    "building index: scanning table": (2, 50),
    "building index: sorting live tuples": (50, 55),
    "building index: sorting dead tuples": (54, 55),
    "building index: loading tuples in tree": (55, 65),
    "waiting for writers before validation": (65, 66),
    "index validation: scanning index": (66, 75),
    "index validation: sorting tuples": (75, 76),
    "index validation: scanning table": (76, 96),
    "waiting for old snapshots": (96, 98),
    "waiting for readers before marking dead": (98, 99),
    "waiting for readers before dropping": (98, 99),
}

# $1 how the statement of the build begins
_PROGRESS = """
SELECT p.phase, p.blocks_done, p.blocks_total, p.tuples_done, p.tuples_total, nullif(p.current_locker_pid, 0) AS locker,
       extract(epoch FROM clock_timestamp() - l.xact_start)::float8 AS age, l.application_name, l.usename::text AS role,
       l.state
FROM pg_catalog.pg_stat_activity AS a
JOIN pg_catalog.pg_stat_progress_create_index AS p ON p.pid = a.pid
LEFT JOIN pg_catalog.pg_stat_activity AS l ON l.pid = p.current_locker_pid AND p.current_locker_pid <> 0
WHERE a.datname = current_database() AND a.state = 'active' AND starts_with(a.query, $1)
"""

# $1 schema, $2 name
_FACTS = """
SELECT c.oid::bigint, pg_catalog.pg_relation_size(c.oid), coalesce(s.idx_scan, 0)
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_stat_all_indexes AS s ON s.indexrelid = c.oid
WHERE n.nspname = $1::text::name AND c.relname = $2::text::name
"""


class Locker(NamedTuple):
    """Who holds a build up: a backend with a transaction that began before; ``age`` is in seconds, None if hidden."""

    pid: int
    age: float | None
    application: str
    role: str
    state: str


class Progress(NamedTuple):
    """How far a build is that runs; blocks are those of the phase."""

    phase: str
    blocks_done: int
    blocks_total: int
    percent: int
    locker: Locker | None


class Facts(NamedTuple):
    """An index that is there, whole or not; ``scans`` since PostgreSQL's statistics began."""

    oid: int
    size: int
    scans: int


async def progress(database: Database, record: IndexRecord) -> Progress | None:
    """How far the build is; None when none runs. Raises Unavailable."""
    with database.guard():
        row = await database.admin.fetchrow(_PROGRESS, create_prefix(record.pg_name))
    if row is None:
        return None
    locker = None
    if row["locker"] is not None:
        locker = Locker(row["locker"], row["age"], row["application_name"] or "", row["role"] or "", row["state"] or "")
    done, total = row["blocks_done"] or 0, row["blocks_total"] or 0
    parts = (row["tuples_done"] or 0, row["tuples_total"] or 0) if "tuples in" in row["phase"] else (done, total)
    return Progress(row["phase"], done, total, percent(row["phase"], *parts), locker)


async def facts(database: Database, record: IndexRecord) -> Facts | None:
    """Size and use; None when PostgreSQL has no such index. Raises Unavailable."""
    with database.guard():
        row = await database.admin.fetchrow(_FACTS, record.schema, record.pg_name)
    return row and Facts(*row)


def percent(phase: str, done: int, total: int) -> int:
    """Of the whole build, about; never less than in a phase before."""
    begin, end = _PHASES.get(phase, (0, 0))
    return begin + (end - begin) * min(done, total) // total if total > 0 else begin
