"""Brings the schema in PostgreSQL to what this server needs, and refuses one that it cannot run on.

The ledger is a table in the admin schema. A migration travels as one message, which PostgreSQL executes as one
transaction that begins with the migration's row of the ledger: that row is what servers that start together wait for
and what tells the later ones that the work is done. So a server that stops halfway holds nothing, and no lock outlives
a transaction (a session's advisory lock would exclude nobody behind a pooler).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import asyncpg

from orisun_server.errors import FailedPrecondition, SchemaMismatch
from orisun_server.storage.database import Database
from orisun_server.storage.migrations import Migration, Scope, Sources, boundary_scope, newest, release
from orisun_server.storage.names import literal, quote

_log = logging.getLogger(__name__)

#: Migrations of boundaries that run at once; the admin pool has five connections and other work.
_AT_ONCE = 3
_TRIES = 10

_LEDGER = """
CREATE TABLE IF NOT EXISTS {schema}.orisun_migration (
    scope         text NOT NULL,
    schema_name   text NOT NULL,
    version       int NOT NULL,
    name          text NOT NULL,
    checksum      text NOT NULL,
    oldest_server text NOT NULL,
    applied_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    applied_by    text NOT NULL,
    PRIMARY KEY (scope, schema_name, version)
)
"""

_COLLISIONS = (
    asyncpg.DuplicateSchemaError,
    asyncpg.DuplicateTableError,
    asyncpg.DuplicateObjectError,
    asyncpg.UniqueViolationError,
    asyncpg.InternalServerError,  # tuple concurrently updated
)
_TAKEN = (asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError, asyncpg.DuplicateFunctionError)


class Applied(NamedTuple):
    """A row of the ledger."""

    version: int
    name: str
    checksum: str
    oldest_server: str
    #: PostgreSQL's clock, ISO 8601.
    applied_at: str
    applied_by: str


class Step(NamedTuple):
    """A migration that is to be applied, or was."""

    scope: str
    schema: str
    version: int
    name: str


class ScopeStatus(NamedTuple):
    """Where a scope stands; ``problem`` says why this server cannot run on it, "" when it can or a migration helps."""

    scope: Scope
    applied: tuple[Applied, ...]
    pending: tuple[Migration, ...]
    problem: str


class Migrator:
    """Plans, applies and verifies the migrations of the admin schema and of every boundary."""

    def __init__(
        self,
        database: Database,
        admin_schema: str,
        *,
        sources: Sources | None = None,
        server_version: str | None = None,
        applied_by: str = "server",
    ) -> None:
        self._database = database
        self._sources = sources or Sources.packaged()
        self._version = server_version or importlib.metadata.version("orisun")
        self._applied_by = applied_by
        self.admin = Scope(admin_schema)
        self._ledger = f"{quote(admin_schema)}.orisun_migration"

    async def scopes(self, seeds: Iterable[tuple[str, str]] = ()) -> list[Scope]:
        """The admin scope, every active boundary of the catalog, and the (name, schema) pairs that it does not list."""
        rows: Sequence[asyncpg.Record] = ()
        with self._database.guard(), contextlib.suppress(asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            rows = await self._database.admin.fetch(
                f"SELECT name, namespace, status = 'ACTIVE' AS active FROM {quote(self.admin.schema)}.orisun_boundary"
            )
        listed = {row["name"] for row in rows}
        pairs = [(row["name"], row["namespace"]) for row in rows if row["active"]]
        pairs += [(name, schema) for name, schema in seeds if name not in listed]
        return [self.admin, *(boundary_scope(name, schema) for name, schema in sorted(pairs))]

    async def status(self, scopes: Iterable[Scope]) -> list[ScopeStatus]:
        """Where each scope stands, by one query for all of them. Raises Unavailable."""
        ledger = await self._read_ledger()
        return [self._judge(scope, ledger.get((scope.name, scope.schema), ())) for scope in scopes]

    async def plan(self, scopes: Iterable[Scope]) -> list[Step]:
        """What ``apply`` would do. Raises SchemaMismatch where it would refuse."""
        return [
            Step(state.scope.name, state.scope.schema, migration.version, migration.name)
            for state in _checked(await self.status(scopes))
            for migration in state.pending
        ]

    async def verify(self, scopes: Iterable[Scope]) -> None:
        """Raise SchemaMismatch unless this server can run on every scope as it stands."""
        for state in _checked(await self.status(scopes)):
            if state.pending:
                raise SchemaMismatch(
                    f"{state.scope.label} is at version {newest_applied(state)} and server {self._version} needs"
                    f" {newest(state.pending)}: run `orisun migrate apply`, or wait until the operator has"
                )

    async def apply(self, scopes: Iterable[Scope]) -> list[Step]:
        """Apply what is pending, safe when many do so at once; the answer lists what this call applied.

        Raises:
            SchemaMismatch: A scope was altered or is of an incompatible version; nothing was applied.
            FailedPrecondition: Objects are in the way, or PostgreSQL's user lacks a privilege.
            Unavailable: PostgreSQL cannot be reached.
        """
        states = [state for state in _checked(await self.status(scopes)) if state.pending]
        if not states:
            return []
        await self._create_missing(sorted({self.admin.schema, *(state.scope.schema for state in states)}))
        done: list[Step] = []
        for state in states:
            if state.scope == self.admin:
                done += await self._apply_scope(state)
        slots = asyncio.Semaphore(max(1, min(_AT_ONCE, self._database.admin.get_max_size() - 1)))

        async def apply_boundary(state: ScopeStatus) -> None:
            async with slots:
                done.extend(await self._apply_scope(state))

        try:
            async with asyncio.TaskGroup() as group:
                for state in states:
                    if state.scope != self.admin:
                        group.create_task(apply_boundary(state))
        except* Exception as failures:
            # one reason is enough to act on, and a group says nothing to who reads the log
            raise _first(failures) from None
        if done:
            _log.info("applied %d migrations to %d scopes", len(done), len({step.scope for step in done}))
        return done

    async def _apply_scope(self, state: ScopeStatus) -> list[Step]:
        scope, done = state.scope, list[Step]()
        while state.pending:
            migration = state.pending[0]
            try:
                with self._database.guard(), self._explained(scope):
                    await self._database.admin.execute(self._script(scope, migration))
                done.append(Step(scope.name, scope.schema, migration.version, migration.name))
                state = state._replace(pending=state.pending[1:])
            except asyncpg.UniqueViolationError as error:
                if error.table_name != "orisun_migration":
                    raise
                # another server was faster; what it applied must be what we would have
                (state,) = _checked(await self.status([scope]))
        return done

    def _script(self, scope: Scope, migration: Migration) -> str:
        # a message of several statements takes no parameters; all of these are this server's own words
        row = [scope.name, scope.schema, migration.name, migration.checksum, migration.oldest_server, self._applied_by]
        return (
            f"INSERT INTO {self._ledger} (version, scope, schema_name, name, checksum, oldest_server, applied_by)"
            f" VALUES ({migration.version}, {', '.join(literal(value) for value in row)});\n"
            + scope.render(migration.sql)
        )

    def _judge(self, scope: Scope, applied: Sequence[Applied]) -> ScopeStatus:
        known = self._sources.admin if scope.names is None else self._sources.boundary
        by_version = {row.version: row for row in applied}
        pending = tuple(migration for migration in known if migration.version not in by_version)
        return ScopeStatus(scope, tuple(applied), pending, self._problem(scope, known, by_version))

    def _problem(self, scope: Scope, known: Sequence[Migration], applied: Mapping[int, Applied]) -> str:
        for migration in known:
            row = applied.get(migration.version)
            if row is None and migration.version < max(applied, default=0):
                return f"{scope.label}: version {migration.version} was never applied and later ones were; restore it"
            if row is not None and row.checksum != migration.checksum:
                return (
                    f"{scope.label}: migration {migration.version} ({migration.name}) was altered: applied"
                    f" {row.checksum[:12]} ({row.name}), this server has {migration.checksum[:12]};"
                    " run the release that applied it, or one whose migrations were not edited"
                )
        for row in applied.values():
            if row.version > newest(known) and release(row.oldest_server) > release(self._version):
                return (
                    f"{scope.label} is at version {row.version} ({row.name}), which needs server {row.oldest_server} or"
                    f" newer, and this is {self._version} (knows version {newest(known)}): run a newer release"
                )
        return ""

    async def _read_ledger(self) -> dict[tuple[str, str], list[Applied]]:
        ledger: dict[tuple[str, str], list[Applied]] = defaultdict(list)
        with self._database.guard(), contextlib.suppress(asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            for row in await self._database.admin.fetch(
                "SELECT scope, schema_name, version, name, checksum, oldest_server, applied_at, applied_by"
                f" FROM {self._ledger} ORDER BY version"
            ):
                scope, schema, version, name, checksum, oldest, at, by = row
                applied = Applied(version, name, checksum, oldest, at.isoformat(), by)
                ledger[scope, schema].append(applied)
        return ledger

    async def _create_missing(self, schemas: Sequence[str]) -> None:
        """Create the schemas and the ledger; only what is missing, because trying takes privileges even in vain."""
        for attempt in range(_TRIES):
            try:
                with self._database.guard(), self._explained(self.admin):
                    row = await self._database.admin.fetchrow(
                        "SELECT array(SELECT s FROM unnest($1::text[]) AS s WHERE NOT EXISTS"
                        " (SELECT FROM pg_catalog.pg_namespace WHERE nspname = s)) AS schemas,"
                        " pg_catalog.to_regclass($2) IS NULL AS ledger",
                        schemas,
                        self._ledger,
                    )
                    for schema in row["schemas"]:
                        await self._database.admin.execute(f"CREATE SCHEMA IF NOT EXISTS {quote(schema)}")
                    if row["ledger"]:
                        await self._database.admin.execute(self.admin.render(_LEDGER))
                    return
            except _COLLISIONS:
                # IF NOT EXISTS looks before it leaps: two who create at once collide
                if attempt == _TRIES - 1:
                    raise

    @contextlib.contextmanager
    def _explained(self, scope: Scope) -> Iterator[None]:
        try:
            yield
        except asyncpg.InsufficientPrivilegeError as error:
            raise FailedPrecondition(
                f"{scope.label}: PostgreSQL's user lacks a privilege ({error});"
                f" create the schema for it, or GRANT CREATE ON DATABASE or SCHEMA {quote(scope.schema)} to it"
            ) from error
        except _TAKEN as error:
            if scope.names is None:
                raise
            raise FailedPrecondition(
                f"{scope.label}: {error}, and the ledger of migrations does not know it:"
                " drop or move what is there, or use another boundary name or schema"
            ) from error


def newest_applied(state: ScopeStatus) -> int:
    """The version that a scope is at; 0 before the first migration."""
    return max((row.version for row in state.applied), default=0)


def _checked(states: list[ScopeStatus]) -> list[ScopeStatus]:
    for state in states:
        if state.problem:
            raise SchemaMismatch(state.problem)
    return states


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure
