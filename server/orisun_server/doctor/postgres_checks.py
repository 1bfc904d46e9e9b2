"""PostgreSQL as an event store needs it. Reads only."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime

from ..settings import Settings
from ..storage.database import Database
from ..storage.index_catalog import READY, IndexCatalog
from ..storage.insight import Insight
from ..storage.migrate import Migrator
from ..storage.names import quote
from . import Finding

_MIB = 1024 * 1024
#: Seconds that clocks may differ by.
_SKEW = 1.0
#: Seconds after which a transaction holds up vacuum and builds of indexes noticeably.
_LONG = 600.0
#: Transactions until the numbers run out: 2**31; autovacuum is late from half of it on.
_OLD = 1 << 30

_SETTINGS = """
SELECT name, setting FROM pg_catalog.pg_settings WHERE name = ANY (ARRAY[
    'fsync', 'full_page_writes', 'synchronous_commit', 'synchronous_standby_names', 'autovacuum', 'shared_buffers',
    'max_wal_size', 'server_version', 'track_counts'])
"""
_STATE = """
SELECT pg_catalog.pg_is_in_recovery() AS standby, clock_timestamp() AS now,
       (SELECT age(datfrozenxid) FROM pg_catalog.pg_database WHERE datname = current_database()) AS age,
       (SELECT stats_reset FROM pg_catalog.pg_stat_database WHERE datname = current_database()) AS stats_reset,
       (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend') AS connections
"""
_ALLOWED = """
SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
"""
_TRANSACTIONS = """
SELECT pid, coalesce(usename, '') AS role, coalesce(application_name, '') AS application, state,
       extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds
FROM pg_catalog.pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
      AND xact_start < clock_timestamp() - $1 * interval '1 second'
ORDER BY xact_start LIMIT 3
"""


async def all_of(settings: Settings) -> AsyncIterator[Finding]:
    """Every check in turn. Raises OrisunError where PostgreSQL cannot be used at all."""
    # one connection of each pool is enough to look
    few = {
        f"pg_{pool}_{name}": 1 for pool in ("write", "read", "admin") for name in ("max_open_conns", "max_idle_conns")
    }
    database = await Database.connect(settings.model_copy(update=few))
    try:
        for part in (_configuration, _state, _schema):
            async for finding in part(database, settings):
                yield finding
        if await _is_prepared(database, settings):
            for part in (_connections, _indexes):
                async for finding in part(database, settings):
                    yield finding
    finally:
        await database.close()


async def _configuration(database: Database, settings: Settings) -> AsyncIterator[Finding]:
    with database.guard():
        rows = await database.admin.fetch(_SETTINGS)
    found = {row["name"]: row["setting"] for row in rows}
    yield Finding("ok", "PostgreSQL", f"version {found['server_version']} at {database.target}")
    problems = list(_misconfigured(found))
    for finding in problems:
        yield finding
    if not problems:
        yield Finding("ok", "PostgreSQL's settings", "what was acknowledged survives a crash; autovacuum runs")


async def _is_prepared(database: Database, settings: Settings) -> bool:
    """Whether a server or `orisun migrate` has made the tables of administration."""
    table = f"{quote(settings.admin_schema)}.orisun_index"
    with database.guard():
        return bool(await database.admin.fetchval("SELECT pg_catalog.to_regclass($1) IS NOT NULL", table))


async def _connections(database: Database, settings: Settings) -> AsyncIterator[Finding]:
    if database.pooled:
        return
    with database.guard():
        allowed = await database.admin.fetchval(_ALLOWED)
    servers = max(1, sum(node.kind == "server" for node in await Insight(database, settings.admin_schema).nodes()))
    each = settings.pg_write_max_open_conns + settings.pg_read_max_open_conns + settings.pg_admin_max_open_conns
    if servers * each > allowed:
        yield Finding(
            "warning", "connections", f"{servers} servers may open {servers * each}, PostgreSQL allows {allowed}",
            "raise max_connections, lower ORISUN_PG_*_MAX_OPEN_CONNS, or put PgBouncer between",
        )  # fmt: skip
    else:
        yield Finding("ok", "connections", f"{servers} servers may open {servers * each} of {allowed}")


def _misconfigured(found: Mapping[str, str]) -> Iterator[Finding]:
    for name, harm in (
        ("fsync", "acknowledged events are lost when the machine crashes"),
        ("full_page_writes", "a crash can leave torn pages"),
        ("autovacuum", "statistics and visibility are not kept up, and reads become slow"),
        ("track_counts", "autovacuum cannot work, and nothing is known of the use of indexes"),
    ):
        if found[name] != "on":
            yield Finding(
                "problem", f"PostgreSQL's {name}", f"is {found[name]}: {harm}", f"ALTER SYSTEM SET {name} = on"
            )
    commit = found["synchronous_commit"]
    if commit == "off":
        yield Finding(
            "problem", "PostgreSQL's synchronous_commit", "is off: acknowledged events are lost in a crash",
            "ALTER SYSTEM SET synchronous_commit = on",
        )  # fmt: skip
    elif commit == "local" and found["synchronous_standby_names"]:
        yield Finding(
            "warning", "PostgreSQL's synchronous_commit", "is local: a failover can lose acknowledged events",
            "set it to on, so that commits wait for the standby",
        )  # fmt: skip
    if int(found["shared_buffers"]) * 8192 < 128 * _MIB:
        yield Finding(
            "warning", "PostgreSQL's shared_buffers", f"are {int(found['shared_buffers']) * 8192 // _MIB} MiB",
            "a quarter of the memory is usual",
        )  # fmt: skip
    if int(found["max_wal_size"]) < 1024:
        yield Finding(
            "warning", "PostgreSQL's max_wal_size", f"is {found['max_wal_size']} MiB: appends cause many checkpoints",
            "set it to 2GB or more",
        )  # fmt: skip


async def _state(database: Database, settings: Settings) -> AsyncIterator[Finding]:
    with database.guard():
        sent = time.time()
        row = await database.admin.fetchrow(_STATE)
        local = (sent + time.time()) / 2
        transactions = await database.admin.fetch(_TRANSACTIONS, _LONG)
    if row["standby"]:
        yield Finding(
            "problem", "PostgreSQL", "is a standby, which takes no events", "name the primary in ORISUN_PG_HOST"
        )
    skew = row["now"].timestamp() - local
    if abs(skew) > _SKEW:
        yield Finding(
            "warning", "PostgreSQL's clock", f"differs from this machine's by {abs(skew):.1f} s", "set both by NTP"
        )
    else:
        yield Finding("ok", "PostgreSQL's clock", f"differs from this machine's by {abs(skew) * 1000:.0f} ms")
    if row["age"] > _OLD:
        yield Finding(
            "warning", "PostgreSQL's transaction ids", f"are {row['age']:,} transactions old, of 2,147,483,648",
            "autovacuum is late: look for long transactions and stale replication slots, and run VACUUM",
        )  # fmt: skip
    for one in transactions:
        yield Finding(
            "warning", f"transaction of process {one['pid']}",
            f"{one['role']} ({one['application'] or 'no application name'}) has had it open for "
            f"{one['seconds'] / 60:,.0f} minutes, {one['state']}",
            "it holds up vacuum and builds of indexes; end it, or set idle_in_transaction_session_timeout",
        )  # fmt: skip


async def _schema(database: Database, settings: Settings) -> AsyncIterator[Finding]:
    migrator = Migrator(database, settings.admin_schema, applied_by="orisun doctor")
    states = await migrator.status(await migrator.scopes([(b.name, b.schema) for b in settings.boundaries]))
    bad = [state for state in states if state.problem]
    pending = [state for state in states if state.pending and not state.problem]
    for state in bad:
        yield Finding("problem", f"schema of {state.scope.label}", str(state.problem), "orisun migrate status")
    if pending:
        yield Finding(
            "warning", "schema", f"{len(pending)} of {len(states)} have migrations to run",
            "a server does so at its start, or: orisun migrate apply",
        )  # fmt: skip
    elif not bad:
        yield Finding("ok", "schema", f"{len(states)} are up to date")


async def _indexes(database: Database, settings: Settings) -> AsyncIterator[Finding]:
    catalog, insight = IndexCatalog(database, settings.admin_schema), Insight(database, settings.admin_schema)
    _, broken = await catalog.version()
    if broken:
        yield Finding(
            "warning",
            "indexes",
            "one is missing or invalid in PostgreSQL",
            "a running server rebuilds it within a minute",
        )
    records = await catalog.all()
    with database.guard():
        row = await database.admin.fetchrow(_STATE)
        since = f"since {row['stats_reset']:%Y-%m-%d}" if row["stats_reset"] else "since the statistics began"
        counted = (datetime.now(UTC) - row["stats_reset"]).days if row["stats_reset"] else None
    unused = 0
    for schema in sorted({record.schema for record in records}):
        ready = {record.pg_name: record for record in records if record.schema == schema and record.state == READY}
        for pg_name, use in (await insight.index_use(schema, list(ready))).items():
            record = ready[pg_name]
            if use.scans == 0 and record.boundary != settings.admin_boundary:
                unused += 1
                name = record.definition.name
                yield Finding(
                    "warning", f"index {name} of {record.boundary}",
                    f"was not used once {since}, and takes {use.bytes / _MIB:,.1f} MiB"
                    + (f" (that is only {counted} days)" if counted is not None and counted < 7 else ""),
                    f"if nothing needs it: orisun index drop {record.boundary} {name}",
                )  # fmt: skip
    for record in records:
        if record.last_error:
            yield Finding(
                "problem", f"index {record.definition.name} of {record.boundary}",
                f"could not be built: {record.last_error}", "mend that; a server tries again",
            )  # fmt: skip
    if not unused:
        # which are missing, the servers know: they count criteria that no index served
        yield Finding("ok", "indexes", f"all {len(records)} are used")
