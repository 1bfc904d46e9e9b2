"""How servers share the boundaries fairly although some of them cannot publish.

A server that lives but does not reach NATS takes nothing, so a share of "boundaries / live servers" may leave some
without a publisher, and giving back what is over the share may find no taker. So a server takes more than its share of
what stays free, and gives it back only when one that has less says that it wants more. It says so over NATS: who does
not reach NATS wants nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from nats.aio.msg import Msg

from .nats import Connection, Nats

_SUBJECT = "orisun.publishers."

#: Seconds for which a lease has to be free until it is taken by a server that has its share: enough for the others,
#: who look once a second, to take theirs.
_LEFT_OVER = 1.5

#: Seconds for which another server's wish is remembered.
_REMEMBERED = 3.0


class Appetite:
    """What this server says and hears about wanting more boundaries."""

    def __init__(self, nats: Nats, node: str) -> None:
        """``node`` tells apart the servers of a store."""
        self._nats, self._subject, self._node = nats, _SUBJECT + nats.store, node.encode()
        self._connection: Connection | None = None
        self._heard_at = float("-inf")
        self._free_since: dict[str, float] = {}

    async def listen(self) -> None:
        """Hears the others from now on. Raises what NATS raises."""
        connection = self._nats.connection
        if connection is not self._connection:
            await connection.client.subscribe(self._subject, cb=self._hear)
            self._connection = connection

    async def say(self) -> None:
        """Tells the others that this server wants more."""
        await self._nats.connection.client.publish(self._subject, self._node)

    @property
    def others_want(self) -> bool:
        """Whether another server has said so lately."""
        return time.monotonic() < self._heard_at + _REMEMBERED

    def left_over(self, free: Iterable[str]) -> list[str]:
        """Those of the boundaries, all that are free now, that have been so for a while."""
        now = time.monotonic()
        self._free_since = {name: self._free_since.get(name, now) for name in free}
        return [name for name, since in self._free_since.items() if now >= since + _LEFT_OVER]

    async def _hear(self, message: Msg) -> None:
        if message.data != self._node:
            self._heard_at = time.monotonic()
