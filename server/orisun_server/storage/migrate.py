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
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import asyncpg
import structlog

from ..errors import FailedPrecondition, OrisunError, SchemaMismatch, Unavailable
from .database import Database
from .migrations import Applied, Migration, Scope, ScopeStatus, Sources, boundary_scope, judge, newest
from .names import literal, quote

log = structlog.get_logger(__name__)

#: Migrations of boundaries that run at once; the admin pool has five connections and other work.
_AT_ONCE = 3
_TRIES = 10

#: Seconds that a statement of a migration stands in the queue for a lock, behind which all who come later stand too,
#: and seconds that these have before it is tried again, here or by another server.
_LOCK_PATIENCE, _LOCK_PAUSE = 2.0, 1.0

LEDGER = """
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


class _Locked(Unavailable):
    """Somebody's open transaction holds what a statement needs."""


class Step(NamedTuple):
    """A migration that is to be applied, or was."""

    scope: str
    schema: str
    version: int
    name: str


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
        #: The migrations that it knows.
        self.sources = sources or Sources.packaged()
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
        return [
            judge(scope, self.sources, ledger.get((scope.name, scope.schema), ()), self._version) for scope in scopes
        ]

    async def plan(self, scopes: Iterable[Scope]) -> list[Step]:
        """What ``apply`` would do. Raises SchemaMismatch where it would refuse."""
        return [
            Step(state.scope.name, state.scope.schema, migration.version, migration.name)
            for state in _checked(await self.status(scopes))
            for migration in state.pending
        ]

    async def verify(self, scopes: Iterable[Scope]) -> None:
        """Raise SchemaMismatch unless this server can run on every scope as it stands."""
        for state in await self.status(scopes):
            self.check(state)

    def check(self, state: ScopeStatus) -> None:
        """Raise SchemaMismatch unless this server can run on the scope as it stands."""
        if state.problem:
            raise SchemaMismatch(state.problem)
        if state.pending:
            raise SchemaMismatch(
                f"{state.scope.label} is at version {state.version} and server {self._version} needs"
                f" {newest(state.pending)}: run `orisun migrate apply`, or wait until the operator has"
            )

    async def apply(self, scopes: Iterable[Scope]) -> list[Step]:
        """Apply what is pending, safe when many do so at once; the answer lists what this call applied.

        Whoever holds a lock that a migration needs is waited for, however long; others' statements never for long.

        Raises:
            SchemaMismatch: A scope was altered or is of an incompatible version; nothing was applied.
            FailedPrecondition: Objects are in the way, or PostgreSQL's user lacks a privilege.
            Unavailable: PostgreSQL cannot be reached.
        """
        states = _checked(await self.status(scopes))
        done: list[Step] = []
        for failure in (await self._apply_all(states, done)).values():
            raise failure
        return done

    async def apply_each(self, scopes: Iterable[Scope], patience: float = _LOCK_PATIENCE) -> dict[str, Exception]:
        """Like ``apply``, but one scope's failure keeps no other from its migrations; scope name to what went wrong.

        Whoever holds a lock that a statement needs is waited for ``patience`` seconds, and what went wrong is
        ``Unavailable`` then: try again later.

        Raises Unavailable when nothing could be tried.
        """
        states = await self.status(scopes)
        refused: dict[str, Exception] = {s.scope.name: SchemaMismatch(s.problem) for s in states if s.problem}
        return refused | await self._apply_all([state for state in states if not state.problem], [], patience)

    async def forget(self, scopes: Sequence[Scope]) -> None:
        """Remove from the ledger what it says about scopes whose objects are gone. Raises Unavailable."""
        with self._database.guard(), contextlib.suppress(asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            await self._database.admin.execute(
                f"DELETE FROM {self._ledger}"
                " WHERE (scope, schema_name) IN (SELECT * FROM unnest($1::text[], $2::text[]))",
                [scope.name for scope in scopes],
                [scope.schema for scope in scopes],
            )

    async def _apply_all(
        self, states: Sequence[ScopeStatus], done: list[Step], patience: float | None = None
    ) -> dict[str, Exception]:
        failures: dict[str, Exception] = {}
        states = [state for state in states if state.pending]
        if not states:
            return failures
        slots = asyncio.Semaphore(max(1, min(_AT_ONCE, self._database.admin.get_max_size() - 1)))

        async def apply_one(state: ScopeStatus) -> None:
            async with slots:
                try:
                    if state.scope.schema in missing:
                        await self._create_schema(state.scope, patience)
                    done.extend(await self._apply_scope(state, patience))
                except (OrisunError, asyncpg.PostgresError) as error:
                    failures[state.scope.name] = error

        await self._create_ledger()
        missing = await self._missing_schemas([state.scope.schema for state in states])
        for state in states:
            # the admin schema first: the others' tables are of no use without it
            if state.scope == self.admin:
                await apply_one(state)
        if not failures:
            await asyncio.gather(*(apply_one(state) for state in states if state.scope != self.admin))
        if done:
            log.info("migrations applied", migrations=len(done), scopes=len({step.scope for step in done}))
        return failures

    async def _apply_scope(self, state: ScopeStatus, patience: float | None) -> list[Step]:
        scope, done = state.scope, list[Step]()
        told = False
        while state.pending:
            migration = state.pending[0]
            script = self._script(scope, migration, patience)
            try:
                with self._database.guard(), self._explained(scope):
                    await self._database.admin.execute(script)
                done.append(Step(scope.name, scope.schema, migration.version, migration.name))
                state = state._replace(pending=state.pending[1:])
            except _Locked as locked:
                if patience is not None:
                    raise
                if not told:
                    log.warning("a migration waits", migration=migration.name, reason=locked.public)
                told = True
                await asyncio.sleep(_LOCK_PAUSE)
            except asyncpg.UniqueViolationError as error:
                if error.table_name != "orisun_migration":
                    raise
                # another server was faster; what it applied must be what we would have
                (state,) = _checked(await self.status([scope]))
        return done

    def _script(self, scope: Scope, migration: Migration, patience: float | None) -> str:
        # a message of several statements takes no parameters; all of these are this server's own words
        row = [scope.name, scope.schema, migration.name, migration.checksum, migration.oldest_server, self._applied_by]
        return (
            # without a patience the ledger's row is waited for however long: another server may be at this migration
            _limited(patience)
            + f"INSERT INTO {self._ledger} (version, scope, schema_name, name, checksum, oldest_server, applied_by)"
            f" VALUES ({migration.version}, {', '.join(literal(value) for value in row)});\n"
            # who had to wait for the row comes after one that gave up: together they would always be in the queue
            f"SELECT pg_catalog.pg_sleep({_LOCK_PAUSE}) WHERE clock_timestamp() > now() + interval '100 ms';\n"
            + _setting("lock_timeout", f"{_LOCK_PATIENCE if patience is None else patience}s")
            + scope.render(migration.sql)
        )

    async def _read_ledger(self) -> dict[tuple[str, str], list[Applied]]:
        ledger: dict[tuple[str, str], list[Applied]] = defaultdict(list)
        with self._database.guard(), contextlib.suppress(asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            for row in await self._database.admin.fetch(
                "SELECT scope, schema_name, version, name, checksum, oldest_server, applied_at, applied_by"
                f" FROM {self._ledger} ORDER BY version"
            ):
                scope, schema, version, name, checksum, oldest, at, by = row
                applied = Applied(version, name, checksum, oldest, at, by)
                ledger[scope, schema].append(applied)
        return ledger

    async def _missing_schemas(self, schemas: Sequence[str]) -> set[str]:
        with self._database.guard():
            rows = await self._database.admin.fetch(
                "SELECT s FROM unnest($1::text[]) AS s"
                " WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = s)",
                schemas,
            )
        return {row["s"] for row in rows}

    async def _create_schema(self, scope: Scope, patience: float | None = None) -> None:
        """Only for a schema that is missing: trying takes a privilege, even in vain."""
        await self._create(scope, _limited(patience) + f"CREATE SCHEMA IF NOT EXISTS {quote(scope.schema)}")

    async def _create_ledger(self) -> None:
        with self._database.guard():
            there = await self._database.admin.fetchval("SELECT pg_catalog.to_regclass($1) IS NOT NULL", self._ledger)
        if not there:
            if await self._missing_schemas([self.admin.schema]):
                await self._create_schema(self.admin)
            await self._create(self.admin, self.admin.render(LEDGER))

    async def _create(self, scope: Scope, statement: str) -> None:
        for attempt in range(_TRIES):
            try:
                with self._database.guard(), self._explained(scope):
                    await self._database.admin.execute(statement)
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
        except asyncpg.LockNotAvailableError as error:
            raise _Locked(
                f"{scope.label}: somebody's open transaction holds what it needs in schema {quote(scope.schema)};"
                " end that transaction, unless it is another server's migration, or try again later"
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
    return state.version


def _limited(patience: float | None) -> str:
    """How a message begins; a role's own limit of statements is meant for queries."""
    return _setting("statement_timeout", "0") + ("" if patience is None else _setting("lock_timeout", f"{patience}s"))


def _setting(name: str, value: str) -> str:
    """A setting local to the message's transaction."""
    return f"SELECT pg_catalog.set_config('{name}', '{value}', true);\n"


def _checked(states: list[ScopeStatus]) -> list[ScopeStatus]:
    for state in states:
        if state.problem:
            raise SchemaMismatch(state.problem)
    return states
