"""Sessions with the PostgreSQL of an OrisunCluster: small pools that reconciles share, and what goes wrong.

A session is made anew when what the cluster or its Secrets say has changed, and closed when nobody asks for it any
more. Everything that can go wrong is a ``Blocked`` whose message says what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import structlog
from pydantic import ValidationError

from orisun_server.errors import FailedPrecondition, OrisunError, SchemaMismatch, Unavailable
from orisun_server.setting_types import default_schema
from orisun_server.storage.database import Database
from orisun_server.storage.index_catalog import IndexCatalog
from orisun_server.storage.indexes import Indexes
from orisun_server.storage.leases import Leases
from orisun_server.storage.managed import BoundaryInUse, ManagedBoundaries
from orisun_server.storage.migrate import Migrator
from orisun_server.storage.migrations import Sources, boundary_scope

from ..kube import Kube
from . import Blocked
from .target import Target, find_target, spec_of

log = structlog.get_logger(__name__)

#: Seconds after which the leases of a dead operator are free.
_TTL = 10.0
#: Seconds between looks at the catalog of indexes, for builds to begin.
_INDEX_POLL = 2.0
#: Seconds for which a failure to connect answers everybody who asks; a cluster may have many boundaries.
_FAILURE_HOLDS = 3.0
#: Seconds after which a session that nobody asked for is closed; each resource is looked at more often.
_IDLE, _SWEEP = 600.0, 60.0


@dataclass(frozen=True)
class Session:
    """What the operator uses of one store: the server's own storage, on pools of its own."""

    database: Database
    migrator: Migrator
    leases: Leases
    boundaries: ManagedBoundaries
    indexes: Indexes
    index_catalog: IndexCatalog
    admin_boundary: str
    #: Resources that the catalog of indexes names and that are missing, since when.
    missing: dict[str, datetime.datetime] = field(default_factory=dict)


@dataclass
class _Entry:
    fingerprint: str
    target: str
    session: Session
    parts: contextlib.AsyncExitStack
    users: int = 0
    retired: bool = False
    used_at: float = field(default_factory=time.monotonic)


class Postgres:
    """Sessions by cluster; ``close`` ends them all. ``sources`` are the migrations to apply, by default ours."""

    def __init__(self, kube: Kube, sources: Sources | None = None) -> None:
        self._kube, self._sources = kube, sources
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._failures: dict[tuple[str, str], tuple[float, str, Blocked]] = {}
        self._sweeper: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def session(self, cluster: Mapping[str, Any]) -> AsyncIterator[Session]:
        """The session of an OrisunCluster (the whole object). Its admin schema and admin boundary are migrated.

        Raises Blocked, also where PostgreSQL fails in the block.
        """
        entry = await self._entry(cluster)
        entry.users += 1
        try:
            with explained(entry.target):
                try:
                    yield entry.session
                except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
                    # the catalog is gone, or PostgreSQL is another one: what follows begins with the migrations
                    self._drop(entry)
                    raise
        finally:
            entry.users -= 1
            entry.used_at = time.monotonic()
            if entry.retired and not entry.users:
                await _end(entry)

    @contextlib.asynccontextmanager
    async def open(self, cluster: Mapping[str, Any]) -> AsyncIterator[Database]:
        """The pools alone. Raises Blocked."""
        async with self.session(cluster) as session:
            yield session.database

    async def forget(self, namespace: str, name: str) -> None:
        """The cluster is gone: close its session as soon as nobody uses it."""
        self._failures.pop((namespace, name), None)
        await self._retire((namespace, name))

    async def close(self) -> None:
        """Close everything."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for key in list(self._entries):
            entry = self._entries.pop(key)
            await _end(entry)

    async def _entry(self, cluster: Mapping[str, Any]) -> _Entry:
        metadata = cluster["metadata"]
        key = (str(metadata["namespace"]), str(metadata["name"]))
        async with self._locks.setdefault(key, asyncio.Lock()):
            target = await find_target(self._kube, cluster)
            admin = spec_of(cluster).admin.boundary
            fingerprint = f"{target.fingerprint}/{admin}"
            entry = self._entries.get(key)
            if entry is not None and entry.fingerprint == fingerprint:
                entry.used_at = time.monotonic()
                return entry
            since, failed, problem = self._failures.get(key, (0.0, "", None))
            if problem is not None and failed == fingerprint and time.monotonic() - since < _FAILURE_HOLDS:
                raise Blocked(problem.reason, str(problem), stalled=problem.stalled, retry=problem.retry)
            await self._retire(key)
            try:
                with explained(f"{target.host}:{target.port}/{target.database}"):
                    entry = await _start(
                        target, admin, fingerprint, node=f"orisun-operator-{key[0]}-{key[1]}", sources=self._sources
                    )
            except Blocked as problem:
                self._failures[key] = (time.monotonic(), fingerprint, problem)
                raise
            self._failures.pop(key, None)
            self._entries[key] = entry
            if self._sweeper is None:
                self._sweeper = asyncio.create_task(self._sweep(), name="postgres-sessions")
            return entry

    def _drop(self, entry: _Entry) -> None:
        entry.retired = True
        for key, other in list(self._entries.items()):
            if other is entry:
                del self._entries[key]

    async def _retire(self, key: tuple[str, str]) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            entry.retired = True
            if not entry.users:
                await _end(entry)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            for key, entry in list(self._entries.items()):
                if not entry.users and time.monotonic() - entry.used_at > _IDLE:
                    await self._retire(key)


async def _end(entry: _Entry) -> None:
    """Close everything of it, whatever state PostgreSQL is in."""
    try:
        await entry.parts.aclose()
    except (OrisunError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        log.warning("a session did not end cleanly", target=entry.target, reason=type(error).__name__)


async def _start(target: Target, admin: str, fingerprint: str, *, node: str, sources: Sources | None) -> _Entry:
    async with contextlib.AsyncExitStack() as parts:
        database = await Database.connect(target.settings())
        parts.push_async_callback(database.close)
        schema = default_schema(admin)
        migrator = Migrator(database, schema, sources=sources, applied_by="operator")
        # servers of a cluster only verify, and none starts without these two
        await migrator.apply([migrator.admin, boundary_scope(admin, schema)])
        leases = Leases(database, schema, node, _TTL, kind="operator")
        await leases.start()
        parts.push_async_callback(leases.stop)
        indexes = Indexes(database, leases, schema, poll_interval=_INDEX_POLL)
        await indexes.start()
        parts.push_async_callback(indexes.stop)
        session = Session(
            database=database,
            migrator=migrator,
            leases=leases,
            boundaries=ManagedBoundaries(database, leases, migrator),
            indexes=indexes,
            index_catalog=IndexCatalog(database, schema),
            admin_boundary=admin,
        )
        return _Entry(fingerprint, database.target, session, parts.pop_all())
    raise AssertionError("unreachable")


@contextlib.contextmanager
def explained(target: str) -> Iterator[None]:
    """Failures of PostgreSQL as Blocked, by what caused them."""
    try:
        yield
    except Unavailable as error:
        raise _unavailable(target, error) from error
    except SchemaMismatch as error:
        raise Blocked("SchemaMismatch", f"{error}") from error
    except FailedPrecondition as error:
        raise Blocked("UnsuitablePostgres", f"PostgreSQL at {target}: {error}") from error
    except OrisunError as error:
        raise Blocked("StorageFailed", str(error), stalled=False) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise Blocked(
            "MissingPrivilege", f"PostgreSQL at {target}: its user lacks a privilege ({error}): GRANT it"
        ) from error
    except asyncpg.PostgresError as error:
        # not its message: that could quote an event
        what = f"{type(error).__name__}, SQLSTATE {error.sqlstate}"
        raise Blocked(
            "PostgresFailed", f"PostgreSQL at {target} refused a statement ({what}): its log says more", stalled=False
        ) from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise Blocked("InvalidSpec", f"spec.postgres or its Secret: {problems}") from None


def _unavailable(target: str, error: Unavailable) -> Blocked:
    if isinstance(error, BoundaryInUse):
        return Blocked("BoundaryInUse", str(error), stalled=False, retry=2.0)
    cause = error.__cause__
    if isinstance(cause, asyncpg.InvalidAuthorizationSpecificationError):
        return Blocked(
            "BadCredentials",
            f"PostgreSQL at {target} refuses the user or the password of the Secret: correct the Secret, or the role",
            retry=15.0,
        )
    if isinstance(cause, asyncpg.InvalidCatalogNameError):
        return Blocked(
            "UnknownDatabase", f"PostgreSQL at {target} has no such database: create it, or name another", retry=15.0
        )
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Blocked(
            "UntrustedCertificate",
            f"PostgreSQL at {target} shows a certificate that is not taken ({cause.verify_message.rstrip('.')}):"
            " correct caSecretRef, host or sslMode of spec.postgres.external, or the certificate",
            retry=15.0,
        )
    return Blocked(
        "UnreachablePostgres",
        f"{error}: it is asked again; see that it runs, and that host, port, sslMode and network policies are right",
        stalled=False,
        retry=5.0,
    )
