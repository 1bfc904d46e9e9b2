"""Boundaries that resources in a cluster manage: registered, adopted, released, closed, removed, and looked at.

The operator writes the same catalog as the servers, and makes tables under the same leases, so either may be faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from ..core.position import NOTHING, Position
from ..errors import FailedPrecondition, Unavailable
from .boundaries import BACKEND, GROWN, Boundary, BoundaryRecord, CatalogSql, record_of
from .database import Database
from .index_builder import CANCEL
from .index_sql import create_prefix
from .leases import Leases
from .migrate import Migrator
from .migrations import boundary_scope
from .names import BoundaryNames, literal, quote
from .provision import PROVISION, existing_tables, provision
from .read_sql import ANY_ROW, head

#: Milliseconds that removing a boundary waits for its tables; who uses them still is asked again later.
_LOCK_TIMEOUT = 5_000
#: Milliseconds after which PostgreSQL ends a removal whose client has gone.
_IDLE_TIMEOUT = 10_000

# $1 name, $2 description, $3 backend, $4 schema, $5 existed, $6 manager
_REGISTER = f"""
WITH v AS ({GROWN} RETURNING version)
INSERT INTO {{schema}}.orisun_boundary AS b (name, description, backend, namespace, status, existed_before_catalog,
                                             definition_version, status_version, managed_by)
SELECT $1, $2, $3, $4, 'PROVISIONING', $5::boolean, v.version, v.version, $6 FROM v
ON CONFLICT (name) DO UPDATE SET
    description = excluded.description, namespace = excluded.namespace, status = 'PROVISIONING',
    existed_before_catalog = excluded.existed_before_catalog, last_error = '', managed_by = excluded.managed_by,
    definition_version = excluded.definition_version, status_version = excluded.status_version
WHERE b.status = 'FAILED' AND b.managed_by IN ('', excluded.managed_by)
RETURNING *
"""

# $1 name, $2 who managed it until now, $3 who does from now on, $4 description
_MANAGE = f"""
WITH v AS ({GROWN} RETURNING version)
UPDATE {{schema}}.orisun_boundary AS b SET managed_by = $3, description = coalesce($4, b.description)
FROM v WHERE b.name = $1 AND b.managed_by = $2 RETURNING b.*
"""

# $1 name, $2 reason, $3 manager; changes nothing when it is closed
_CLOSE = f"""
WITH wanted AS MATERIALIZED (
    SELECT FROM {{schema}}.orisun_boundary WHERE name = $1 AND managed_by = $3 AND status <> 'FAILED'
),
v AS ({GROWN} AND EXISTS (SELECT FROM wanted) RETURNING version)
UPDATE {{schema}}.orisun_boundary AS b SET status = 'FAILED', last_error = $2, status_version = v.version
FROM v WHERE b.name = $1 AND b.managed_by = $3 AND b.status <> 'FAILED'
"""

_FIGURES = """
SELECT h.transaction_id, h.global_id, p.transaction_id, p.global_id, coalesce(p.event_count, 0),
       (SELECT count(*) FROM {events} AS e WHERE e.global_id > coalesce(p.global_id, -1) AND {rows}),
       (SELECT n.node_id FROM {schema}.orisun_lease AS l JOIN {schema}.orisun_node AS n USING (node_id)
        WHERE l.kind = 'publisher' AND l.boundary = $1 AND l.name = '' AND n.expires_at > clock_timestamp()),
       EXISTS (SELECT FROM {schema}.orisun_node WHERE kind = 'server' AND expires_at > clock_timestamp())
FROM (SELECT) AS always
LEFT JOIN ({head}) AS h ON true
LEFT JOIN {published} AS p ON p.boundary = $1
"""

# $1 schema, $2 names: the functions with their arguments, quoted; a name may have several
_FUNCTIONS = """
SELECT p.oid::pg_catalog.regprocedure::text AS signature FROM pg_catalog.pg_proc AS p
JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace WHERE n.nspname = $1::text::name AND p.proname = ANY ($2)
"""

# $1 schema, $2 names of relations and functions; no relation is called as a function is
_MISSING = """
SELECT w.name FROM unnest($2::text[]) WITH ORDINALITY AS w (name, n)
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS s ON s.oid = c.relnamespace
                  WHERE s.nspname = $1::text::name AND c.relname = w.name::name)
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS s ON s.oid = p.pronamespace
                  WHERE s.nspname = $1::text::name AND p.proname = w.name::name)
ORDER BY w.n
"""

# $1 schema, $2 table of events, $3 trigger
_IS_CLOSED = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1::text::name AND c.relname = $2::text::name AND t.tgname = $3::text::name
)
"""

#: SQLSTATE of what is appended to a closed boundary (object_not_in_prerequisite_state).
CLOSED = "55000"


class BoundaryInUse(Unavailable):
    """Somebody's transaction holds the tables of a boundary that is to be closed or removed."""

    def __init__(self, boundary: str) -> None:
        super().__init__(f'the tables of boundary "{boundary}" are in use by an open transaction; it is tried again')


@dataclass(frozen=True)
class Figures:
    """Where a boundary stands; ``lag`` is the number of events that are not published yet."""

    events: int
    last: Position
    published: Position
    lag: int
    #: The node that publishes, "" for none.
    publisher: str
    #: Whether any server runs.
    served: bool


class ManagedBoundaries:
    """The catalog of boundaries as the operator uses it. All methods raise Unavailable."""

    def __init__(self, database: Database, leases: Leases, migrator: Migrator) -> None:
        self._database, self._leases, self._migrator = database, leases, migrator
        self._schema = quote(migrator.admin.schema)
        self._sql = CatalogSql.for_schema(migrator.admin.schema)

    async def all(self) -> list[BoundaryRecord]:
        """Every boundary, by name."""
        with self._database.guard():
            rows = await self._database.admin.fetch(
                f'SELECT * FROM {self._schema}.orisun_boundary ORDER BY name COLLATE "C"'
            )
        return [record_of(row) for row in rows]

    async def find(self, name: str) -> BoundaryRecord | None:
        """The boundary of that name."""
        with self._database.guard():
            row = await self._database.admin.fetchrow(
                f"SELECT * FROM {self._schema}.orisun_boundary WHERE name = $1", name
            )
        return row and record_of(row)

    async def register(self, name: str, description: str, schema: str, managed_by: str) -> BoundaryRecord | None:
        """Add a boundary, PROVISIONING, or try a failed one again; None when there is one that has not failed.

        The resource names the boundary itself, so tables from before (of a lost catalog, say) are no accident.
        """
        scope = boundary_scope(name, schema)
        existed = bool(await existing_tables(self._database, [scope]))
        return await self._one(_REGISTER, name, description, BACKEND, schema, existed, managed_by)

    async def provision(self, record: BoundaryRecord) -> BoundaryRecord | None:
        """Make the tables, unless a server is at it; the record as it is then."""
        lease = await self._leases.acquire(PROVISION, record.name)
        if lease is not None:
            try:
                await provision(self._database, self._migrator, self._sql, [(record, lease)])
            finally:
                await lease.release()
        return await self.find(record.name)

    async def manage(
        self, record: BoundaryRecord, managed_by: str, description: str | None = None
    ) -> BoundaryRecord | None:
        """Hand a boundary over to a resource, or to none (""); None when somebody else was faster."""
        return await self._one(_MANAGE, record.name, record.managed_by, managed_by, description)

    async def has_tables(self, boundary: Boundary) -> bool:
        """Whether the table of events is there."""
        return bool(await existing_tables(self._database, [boundary_scope(boundary.name, boundary.schema)]))

    async def missing(self, boundary: Boundary) -> list[str]:
        """Tables, sequence, index and function that this release's migrations make and that are gone."""
        n = boundary.names
        parts = [n.events, n.sequence, n.event_id_index, n.published, n.checkpoints, n.commands, n.append]
        with self._database.guard():
            rows = await self._database.admin.fetch(_MISSING, n.schema, parts)
        return [row["name"] for row in rows]

    async def figures(self, boundary: Boundary) -> Figures:
        """Count, positions and publisher of an active boundary. Raises FailedPrecondition when its tables are gone."""
        names = boundary.names
        sql = _FIGURES.format(
            schema=self._schema,
            events=names.q_events,
            published=names.q_published,
            head=head(names.q_events),
            rows=ANY_ROW,
        )
        try:
            with self._database.guard():
                row = await self._database.read.fetchrow(sql, boundary.name)
        except asyncpg.UndefinedTableError as error:
            raise FailedPrecondition(f'boundary "{boundary.name}": its tables are gone') from error
        commit, prepare, published, published_prepare, counted, lag, publisher, served = row
        return Figures(
            counted + lag,
            NOTHING if prepare is None else Position(commit, prepare),
            NOTHING if published_prepare is None else Position(published, published_prepare),
            lag,
            publisher or "",
            served,
        )

    async def close(self, boundary: Boundary, managed_by: str, reason: str) -> None:
        """Let nothing be appended any more: servers give the boundary up, and PostgreSQL refuses those that did not.

        What stands in the tables afterwards is all that there will be. Can be repeated, and undone by ``reopen``.
        Raises BoundaryInUse.
        """
        await self._execute(_CLOSE, boundary.name, reason, managed_by)
        names = boundary.names
        function = names.qualified(names.closed)
        message = literal(f'boundary "{boundary.name}" is not active')
        try:
            with self._database.guard():
                if await self._database.admin.fetchval(_IS_CLOSED, names.schema, names.events, names.closed):
                    return
                # one message, one transaction; the trigger waits for appends under way and is seen by all later ones
                await self._database.admin.execute(
                    f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT};"
                    f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $closed$ BEGIN"
                    f" RAISE EXCEPTION USING MESSAGE = {message}, ERRCODE = '{CLOSED}'; END $closed$;"
                    f"CREATE TRIGGER {quote(names.closed)} BEFORE INSERT ON {names.q_events}"
                    f" FOR EACH STATEMENT EXECUTE FUNCTION {function}()"
                )
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.DuplicateObjectError):
            # gone already, or closed by another operator just now
            pass
        except asyncpg.LockNotAvailableError as error:
            raise BoundaryInUse(boundary.name) from error

    async def reopen(self, boundary: Boundary) -> None:
        """Undo ``close`` in the tables; ``register`` makes the boundary active again. Raises BoundaryInUse."""
        names = boundary.names
        try:
            with self._database.guard():
                # looking needs no lock of a table that is perhaps in use
                if not await self._database.admin.fetchval(_IS_CLOSED, names.schema, names.events, names.closed):
                    return
                await self._database.admin.execute(
                    f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT};"
                    f"DROP TRIGGER IF EXISTS {quote(names.closed)} ON {names.q_events};"
                    f"DROP FUNCTION IF EXISTS {names.qualified(names.closed)}()"
                )
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            pass
        except asyncpg.LockNotAvailableError as error:
            raise BoundaryInUse(boundary.name) from error

    async def remove(self, boundary: Boundary, managed_by: str) -> bool:
        """Drop the boundary with its events and forget it: all at once, or nothing. False when it is another's by now.

        Raises BoundaryInUse.
        """
        names, schema = boundary.names, self._schema
        try:
            with self._database.guard():
                async with self._database.admin.acquire() as connection:
                    for row in await connection.fetch(
                        f"SELECT pg_name FROM {schema}.orisun_index WHERE boundary = $1", boundary.name
                    ):
                        await connection.execute(CANCEL, create_prefix(row["pg_name"]))
                    async with connection.transaction():
                        await connection.execute(
                            f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT};"
                            f"SET LOCAL idle_in_transaction_session_timeout = {_IDLE_TIMEOUT};"
                            "SET LOCAL statement_timeout = 0"
                        )
                        functions = await connection.fetch(_FUNCTIONS, names.schema, [names.append, names.closed])
                        await connection.execute(_drop_sql(names, [row["signature"] for row in functions]))
                        await connection.execute(
                            f"DELETE FROM {schema}.orisun_migration WHERE scope = $1 AND schema_name = $2",
                            boundary_scope(boundary.name, boundary.schema).name,
                            boundary.schema,
                        )
                        # the version last: its row is what every writer of the catalog waits for
                        await connection.execute(
                            f"DELETE FROM {schema}.orisun_index WHERE boundary = $1", boundary.name
                        )
                        await connection.execute(GROWN.replace("{schema}", schema))
                        gone: str = await connection.execute(
                            f"DELETE FROM {schema}.orisun_boundary WHERE name = $1 AND managed_by = $2",
                            boundary.name,
                            managed_by,
                        )
                        if gone == "DELETE 0":
                            raise _AnothersError
        except _AnothersError:
            return False
        except asyncpg.LockNotAvailableError as error:
            raise BoundaryInUse(boundary.name) from error
        return True

    async def _one(self, sql: str, *arguments: object) -> BoundaryRecord | None:
        with self._database.guard():
            row = await self._database.admin.fetchrow(sql.replace("{schema}", self._schema), *arguments)
        return row and record_of(row)

    async def _execute(self, sql: str, *arguments: object) -> None:
        with self._database.guard():
            await self._database.admin.execute(sql.replace("{schema}", self._schema), *arguments)


class _AnothersError(Exception):
    """Ends the transaction."""


def _drop_sql(names: BoundaryNames, functions: Sequence[str]) -> str:
    """Everything that the migrations of a boundary make; the sequence belongs to the table of events."""
    tables = ", ".join((names.q_events, names.q_published, names.q_checkpoints, names.q_commands))
    return f"DROP TABLE IF EXISTS {tables};" + "".join(f"DROP FUNCTION {signature};" for signature in functions)
