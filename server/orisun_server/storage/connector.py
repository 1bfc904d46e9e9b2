"""How connections to PostgreSQL are opened, and how all of them are given up when it answers nothing.

A partition drops packets and resets nothing: what waits for an answer would wait until TCP gives up, and every new
connection until its own timeout. So while PostgreSQL is silent (``probe`` says when), this is an open circuit breaker:
what waits fails, because its connection is terminated, and so does at once whatever wants a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import weakref
from typing import Any

import asyncpg

from ..errors import StorageSilent

#: Seconds after which a peer that answers nothing counts as gone (a node without power closes no connection).
_DEAD_PEER = 20


class Connector:
    """Opens the connections of a ``Database``; asyncpg's pools take it for their ``connect``."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._connections: weakref.WeakSet[asyncpg.Connection] = weakref.WeakSet()
        #: Limits without a time, which pass when what they hold is given up.
        self._opening: set[asyncio.Timeout] = set()
        #: Whether connections are refused, because PostgreSQL answers nothing.
        self.silent = False

    async def __call__(self, *args: Any, **options: Any) -> asyncpg.Connection:
        """A new connection. Raises StorageSilent, and what asyncpg raises."""
        if self.silent:
            raise self.silence()
        try:
            async with asyncio.timeout(None) as limit:
                self._opening.add(limit)
                try:
                    connection = await open_connection(*args, **options)
                finally:
                    self._opening.discard(limit)
        except TimeoutError:
            if limit.expired():
                raise self.silence() from None
            raise
        self._connections.add(connection)
        return connection

    def give_up(self, *, silent: bool) -> None:
        """Terminates every connection, in use or not: what waits on one fails, and asyncpg's pools open others.

        A terminated connection sends no cancel request, which would wait on the same network. What it was asked to do
        may still be done; a repeated append makes that certain. ``silent`` refuses new connections too.
        """
        self.silent = silent
        for connection in tuple(self._connections):
            connection.terminate()
        self._connections.clear()
        for limit in tuple(self._opening):
            limit.reschedule(0)

    def silence(self) -> StorageSilent:
        """The error of whoever needs PostgreSQL while it is silent."""
        return StorageSilent(f"PostgreSQL at {self._target} does not answer")


async def open_connection(*args: Any, **options: Any) -> asyncpg.Connection:
    """asyncpg's ``connect``, with limits on how long a peer may be silent."""
    connection = await asyncpg.connect(*args, **options)
    transport = getattr(connection, "_transport", None)
    peer = transport.get_extra_info("socket") if transport is not None else None
    if peer is not None and peer.family in (socket.AF_INET, socket.AF_INET6):
        # a duplicate, because uvloop's own socket object takes no options
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(peer.fileno())) as duplicate:
            duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (
                ("TCP_KEEPIDLE", _DEAD_PEER // 2),
                ("TCP_KEEPINTVL", _DEAD_PEER // 4),
                ("TCP_KEEPCNT", 2),
                ("TCP_USER_TIMEOUT", _DEAD_PEER * 1000),
            ):
                if hasattr(socket, option):
                    duplicate.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection
