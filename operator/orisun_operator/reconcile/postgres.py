"""Sessions with the PostgreSQL of an OrisunCluster: small pools that reconciles share, and what goes wrong.

A session is made anew when what the cluster or its Secrets say has changed, and closed when nobody asks for it any
more. Everything that can go wrong is a ``Blocked`` whose message says what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import structlog

from orisun_server.errors import OrisunError
from orisun_server.setting_types import default_schema
from orisun_server.storage.database import Database
from orisun_server.storage.index_catalog import IndexCatalog
from orisun_server.storage.indexes import Indexes
from orisun_server.storage.leases import Leases
from orisun_server.storage.managed import ManagedBoundaries
from orisun_server.storage.migrate import Migrator
from orisun_server.storage.migrations import Sources, boundary_scope

from ..kube import Kube
from . import Blocked
from .failures import explained
from .target import Target, find_target, spec_of

log = structlog.get_logger(__name__)

#: Seconds after which the leases of a dead operator are free.
_TTL = 10.0
#: Seconds between looks at the catalog of indexes, for builds to begin.
_INDEX_POLL = 2.0
#: Seconds for which a failure to connect answers everybody who asks, at first and at most: as long as it has lasted. A
#: cluster may have many boundaries.
_FAILURE_HOLDS, _HOLDS_AT_MOST = 3.0, 30.0
#: Seconds to wait while somebody else connects for the first time.
_CONNECTS = 2.0
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


@dataclass(frozen=True)
class _Failure:
    """Connections that failed with the same problem, the first and the last of them."""

    fingerprint: str
    problem: Blocked
    first: float
    last: float

    @property
    def holds(self) -> bool:
        pause = min(max(_FAILURE_HOLDS, self.last - self.first), _HOLDS_AT_MOST)
        return time.monotonic() - self.last < pause

    def again(self) -> Blocked:
        """For another one who asks."""
        problem = self.problem
        return Blocked(problem.reason, str(problem), stalled=problem.stalled, retry=problem.retry)


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
        self._failures: dict[tuple[str, str], _Failure] = {}
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
        lock = self._locks.setdefault(key, asyncio.Lock())
        if key not in self._entries and lock.locked():
            # to connect may take long: who waited here would keep the clusters that are well from being looked after
            await self._connected(key, lock)
        async with lock:
            return await self._current(key, cluster)

    async def _connected(self, key: tuple[str, str], lock: asyncio.Lock) -> None:
        """Returns when somebody else has connected, or has failed to. Raises Blocked when that takes its time."""
        if (failure := self._failures.get(key)) is not None:
            raise failure.again()
        try:
            async with asyncio.timeout(_CONNECTS):
                await lock.acquire()
        except TimeoutError:
            raise Blocked(
                "AwaitingPostgres",
                f"PostgreSQL of OrisunCluster {key[0]}/{key[1]} is being connected to",
                stalled=False,
                retry=_CONNECTS,
            ) from None
        lock.release()

    async def _current(self, key: tuple[str, str], cluster: Mapping[str, Any]) -> _Entry:
        target = await find_target(self._kube, cluster)
        admin = spec_of(cluster).admin.boundary
        fingerprint = f"{target.fingerprint}/{admin}"
        entry = self._entries.get(key)
        if entry is not None and entry.fingerprint == fingerprint:
            entry.used_at = time.monotonic()
            return entry
        failure = self._failures.get(key)
        if failure is not None and failure.fingerprint != fingerprint:
            del self._failures[key]
            failure = None
        if failure is not None and failure.holds:
            raise failure.again()
        await self._retire(key)
        try:
            with explained(f"{target.host}:{target.port}/{target.database}"):
                entry = await _start(
                    target, admin, fingerprint, node=f"orisun-operator-{key[0]}-{key[1]}", sources=self._sources
                )
        except Blocked as problem:
            now = time.monotonic()
            self._failures[key] = _Failure(fingerprint, problem, failure.first if failure else now, now)
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
