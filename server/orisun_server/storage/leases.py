"""Leases: what one server of all does alone (publishing a boundary, serving a subscriber's name, building an index).

A lease is a row in the admin schema that names a node; it holds for as long as the node lives, by PostgreSQL's clock,
and this server believes in it for less long, by its own. No session state and no advisory locks, so it works behind a
pooler in transaction mode. ``lease_sql`` says why two nodes never hold one lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Iterable

import asyncpg
import structlog

from ..errors import OrisunError, StorageUnavailable, Unavailable
from ..tasks import end
from .database import Database
from .lease_sql import LeaseSql

log = structlog.get_logger(__name__)

#: Part of the lifetime that is believed in locally; the rest is for clocks that do not run alike.
_BELIEVED = 0.95
#: Kinds whose names come and go without end, and the seconds after which a name that nobody holds is forgotten.
_FORGOTTEN_KINDS, _FORGOTTEN_AFTER, _FORGET_EVERY = ("subscriber",), 3600.0, 600.0

_Key = tuple[str, str, str]


def _now() -> float:
    """Seconds of a clock that also counts while the machine sleeps, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


class Lease:
    """One lease that this server holds, or held."""

    def __init__(self, leases: Leases, key: _Key, epoch: int, token: int) -> None:
        self._leases = leases
        self._released = False
        self.kind, self.boundary, self.name = key
        #: Grows with every holder of this lease; what is written under it can be refused to the holders before.
        self.epoch = epoch
        self.token = token
        self.node_id = leases.node_id
        #: Set when the lease was lost, not when it was released.
        self.lost = asyncio.Event()

    @property
    def valid(self) -> bool:
        """Whether nobody else can hold it now, as far as clocks that run at one speed can tell."""
        return not self._released and not self.lost.is_set() and self._leases.lives_as(self.node_id)

    async def release(self) -> None:
        """Give it back at once; never fails, what cannot be told to PostgreSQL now is told by a later heartbeat."""
        if not self._released:
            self._released = True
            await self._leases.give_back(self)

    def __repr__(self) -> str:
        return f"Lease({self.kind!r}, {self.boundary!r}, {self.name!r}, epoch={self.epoch}, valid={self.valid})"


class Leases:
    """The node that this server is, kept alive by a heartbeat, and the leases that it holds.

    ``node_id`` gets a suffix for each incarnation: when a heartbeat comes too late, every lease is lost and the server
    goes on as a new node. ``ttl`` is the node's lifetime in seconds: a dead server's leases are free after it.
    """

    def __init__(
        self, database: Database, admin_schema: str, node_id: str, ttl: float, *, kind: str = "server"
    ) -> None:
        self._database, self._sql = database, LeaseSql.for_schema(admin_schema)
        self._base, self._ttl, self._kind = node_id, ttl, kind
        self._connection: asyncpg.Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._tokens = itertools.count(1)
        self._last_token = 0
        self._held: dict[_Key, Lease] = {}
        self._asking: dict[_Key, int] = {}
        self._deadline = 0.0
        self._joined = False
        self._forgotten_at = _now()
        #: The current incarnation.
        self.node_id = ""

    async def start(self) -> None:
        """Join as a node and keep it alive. Raises Unavailable."""
        try:
            async with asyncio.timeout(max(self._ttl, 5.0)):
                await self._beat()
        except BaseException as error:
            self._drop_connection()
            if isinstance(error, TimeoutError):
                raise StorageUnavailable(f"PostgreSQL at {self._database.target} did not answer in time") from error
            raise
        self._task = asyncio.create_task(self._run(), name="leases-heartbeat")

    async def stop(self) -> None:
        """Leave: every lease is free for others at once."""
        if self._task is not None:
            await end([self._task])
            self._task = None
        node_id, joined = self.node_id, self._joined
        self._lose_all()
        if joined:
            try:
                async with asyncio.timeout(2), self._connected() as connection:
                    await connection.execute(self._sql.leave, node_id)
            except (OrisunError, TimeoutError, asyncpg.PostgresError) as error:
                log.warning("leases end by themselves", seconds=self._ttl, reason=str(error))
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def acquire(self, kind: str, boundary: str, name: str = "") -> Lease | None:
        """The lease, or None while a living node (or this one) holds it. Raises Unavailable."""
        return next(iter(await self._acquire(kind, [boundary], name, 1)), None)

    async def acquire_many(self, kind: str, boundaries: Iterable[str], limit: int) -> list[Lease]:
        """Up to ``limit`` of the leases without a name that are free, by one statement. Raises Unavailable."""
        return await self._acquire(kind, boundaries, "", limit)

    async def free(self, kind: str, boundaries: Iterable[str]) -> list[str]:
        """Those boundaries whose lease without a name no living node holds, by one statement. Raises Unavailable."""
        async with self._in_time():
            rows = await self._database.admin.fetch(self._sql.free, kind, list(boundaries))
        return [row["boundary"] for row in rows]

    async def live_nodes(self) -> int:
        """How many nodes of this kind live, this one included. Raises Unavailable."""
        async with self._in_time():
            return int(await self._database.admin.fetchval(self._sql.live_nodes, self._kind))

    def held(self, kind: str) -> list[Lease]:
        """The valid leases of this server."""
        return [lease for lease in self._held.values() if lease.kind == kind and lease.valid]

    def lives_as(self, node_id: str) -> bool:
        """Whether this server is that node and its lifetime has not passed."""
        return self._joined and node_id == self.node_id and _now() < self._deadline

    async def give_back(self, lease: Lease) -> None:
        """See ``Lease.release``."""
        key = (lease.kind, lease.boundary, lease.name)
        if self._held.get(key) is not lease:
            return
        del self._held[key]
        try:
            async with self._in_time():
                await self._database.admin.execute(self._sql.release, lease.node_id, *key, lease.token)
        except OrisunError as error:
            log.warning("a lease is given back with a later heartbeat", kind=lease.kind, reason=str(error))

    async def _acquire(self, kind: str, boundaries: Iterable[str], name: str, limit: int) -> list[Lease]:
        keys = [(kind, boundary, name) for boundary in dict.fromkeys(boundaries)]
        asked = {key: next(self._tokens) for key in keys if key not in self._held and key not in self._asking}
        if not asked or limit < 1:
            return []
        node_id = self.node_id
        self._last_token = max(asked.values())
        self._asking |= asked
        try:
            if not self.lives_as(node_id):
                raise Unavailable("this server has lost its leases and is joining anew; try again")
            async with self._in_time():
                rows = await self._database.admin.fetch(
                    self._sql.acquire,
                    node_id,
                    kind,
                    [boundary for _, boundary, _ in asked],
                    name,
                    list(asked.values()),
                    limit,
                )
            if not self.lives_as(node_id):
                raise Unavailable("this server has lost its leases and is joining anew; try again")
            leases = [Lease(self, (kind, row["boundary"], name), row["epoch"], row["token"]) for row in rows]
            self._held |= {(kind, lease.boundary, name): lease for lease in leases}
            return leases
        finally:
            # whatever was taken without our knowing is swept by the next heartbeat
            for key in asked:
                del self._asking[key]

    async def _run(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(min(self._ttl / 10, 0.5) if failing else self._ttl / 3)
            self._notice_end()
            patience = min(self._ttl / 3, self._deadline - _now()) if self._joined else self._ttl / 3
            try:
                async with asyncio.timeout(max(patience, 0.01)):
                    await self._beat()
            except Exception as error:  # the heartbeat goes on, whatever happens
                self._drop_connection()
                if not failing:
                    log.warning("heartbeat failed", reason=str(error) or type(error).__name__)
                failing = True
                self._notice_end()
            else:
                if failing:
                    log.info("heartbeat goes on", node=self.node_id)
                failing = False

    async def _beat(self) -> None:
        async with self._connected() as connection:
            sent = _now()
            if self._joined and not await connection.fetchval(self._sql.renew, self.node_id, self._ttl):
                log.warning("the others took this node for dead", node=self.node_id)
                self._lose_all()
            if not self._joined:
                if self.node_id:
                    # frees at once what it still holds
                    await connection.execute(self._sql.leave, self.node_id)
                self.node_id = f"{self._base}-{secrets.token_hex(4)}"
                sent = _now()
                await connection.execute(self._sql.join, self.node_id, self._ttl, self._kind)
                self._joined = True
            # from before it was sent, so never later than PostgreSQL's expires_at
            self._deadline = sent + self._ttl * _BELIEVED
            tokens = [lease.token for lease in self._held.values()] + list(self._asking.values())
            await connection.execute(self._sql.sweep, self.node_id, tokens, self._last_token)
            if _now() - self._forgotten_at >= _FORGET_EVERY:
                self._forgotten_at = _now()
                await connection.execute(self._sql.forget, list(_FORGOTTEN_KINDS), _FORGOTTEN_AFTER)

    def _notice_end(self) -> None:
        if self._joined and _now() >= self._deadline:
            log.warning("this node could not renew its lifetime in time", node=self.node_id)
            self._lose_all()

    def _lose_all(self) -> None:
        self._joined = False
        lost, self._held = list(self._held.values()), {}
        for lease in lost:
            lease.lost.set()
        if lost:
            log.warning("lost leases", count=len(lost))

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """An answer later than a lifetime is of no use; neither is waiting longer for the pool."""
        with self._database.guard():
            async with asyncio.timeout(self._ttl):
                yield

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[asyncpg.Connection]:
        """The heartbeat's own connection: it must not wait for a pool that is busy."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._database.dedicated_connection()
        with self._database.guard():
            yield self._connection

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
