"""Connections that stay at hand between two statements.

Taking one from asyncpg's pool and giving it back costs two tasks and a tenth of a lone append, so flushes keep a few.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import asyncpg

from ..tasks import end

#: Seconds that an unused connection is kept from the pool.
_LINGER = 1.0

#: Seconds after which a connection in use goes through the pool, which closes it when its time is over
#: (ORISUN_PG_WRITE_CONN_MAX_LIFETIME).
_KEPT = 15.0


class KeptConnections:
    """Up to half of a pool's connections, kept while they are in use every second; the pool bounds all of them."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._limit = max(1, pool.get_max_size() // 2)
        self._idle: list[asyncpg.Connection] = []
        self._until: dict[asyncpg.Connection, float] = {}
        self._waiting = 0
        self._used = False
        self._sweeper: asyncio.Task[None] | None = None
        self._releases: set[asyncio.Future[None]] = set()

    async def take(self) -> asyncpg.Connection:
        """A connection for the caller alone, until it gives it back."""
        self._used = True
        while self._idle:
            connection = self._idle.pop()
            if _is_open(connection):
                return connection
            self._release(connection)
        self._waiting += 1
        try:
            connection = await self._pool.acquire()
        finally:
            self._waiting -= 1
        self._until[connection] = time.monotonic() + _KEPT
        return connection

    def give_back(self, connection: asyncpg.Connection, *, sound: bool) -> None:
        """``sound``: its last statement ended as it should; else the pool looks after it."""
        over = time.monotonic() >= self._until[connection]
        if not sound or over or self._waiting or len(self._idle) >= self._limit:
            self._release(connection)
            return
        self._idle.append(connection)
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep(), name="kept-connections")

    async def stop(self) -> None:
        """Returns all to the pool."""
        if self._sweeper is not None:
            await end([self._sweeper])
        self._release_all()
        if self._releases:
            await asyncio.wait(self._releases)

    async def _sweep(self) -> None:
        while self._idle:
            self._used = False
            await asyncio.sleep(_LINGER)
            if not self._used:
                self._release_all()

    def _release_all(self) -> None:
        while self._idle:
            self._release(self._idle.pop())

    def _release(self, connection: asyncpg.Connection) -> None:
        del self._until[connection]
        task: asyncio.Future[None] = asyncio.ensure_future(self._pool.release(connection))
        self._releases.add(task)
        task.add_done_callback(self._released)

    def _released(self, task: asyncio.Future[None]) -> None:
        self._releases.discard(task)
        if not task.cancelled():
            task.exception()  # a lost connection fails here; whoever used it knows


def _is_open(connection: asyncpg.Connection) -> bool:
    # the pool takes one back that was lost, and then it cannot be asked
    with contextlib.suppress(asyncpg.InterfaceError):
        return not connection.is_closed()
    return False
