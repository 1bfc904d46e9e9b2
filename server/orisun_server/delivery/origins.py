"""Which traced call an event comes from, told to the server that publishes its boundary.

Told over NATS while the events are being stored, by their ids (they have no positions yet): so the publisher knows it
before it reads them. Best effort: what comes too late or not at all costs a trace, never an event. Only traced calls
are told of, whose number a second is bounded; without a tracer nothing is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection

import msgspec
from nats.aio.msg import Msg

from ..observation import Tracing
from ..observation.tracing import Origin
from ..tasks import end
from .nats import NATS_ERRORS, Nats

_SUBJECT = "orisun.origins."
#: Origins that wait to be sent; beyond it the oldest are not.
_MOST_WAITING = 100


class Origins:
    """Tells the other servers what this one traces, and hears what they do."""

    def __init__(self, nats: Nats, tracing: Tracing, published_here: Callable[[], Collection[str]]) -> None:
        """``published_here`` names the boundaries of which no other server has to know."""
        self._nats, self._tracing, self._subject = nats, tracing, _SUBJECT + nats.store
        self._published_here = published_here
        self._waiting: list[Origin] = []
        self._something = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        tracing.on_origin(self._add)

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._tell(), name="origins-tell"),
            asyncio.create_task(self._hear(), name="origins-hear"),
        ]

    async def stop(self) -> None:
        await end(self._tasks)

    def _add(self, origin: Origin) -> None:
        if self._nats.connected and origin.boundary not in self._published_here():
            self._waiting = [*self._waiting[1 - _MOST_WAITING :], origin]
            self._something.set()

    async def _tell(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            waiting, self._waiting = self._waiting, []
            with contextlib.suppress(*NATS_ERRORS):
                for origin in waiting:
                    await self._nats.connection.client.publish(self._subject, msgspec.json.encode(origin))

    async def _hear(self) -> None:
        while True:
            connection = await self._nats.wait_connected()
            with contextlib.suppress(*NATS_ERRORS):
                await connection.client.subscribe(self._subject, cb=self._learn)
                await connection.lost.wait()
            await asyncio.sleep(0.1)

    async def _learn(self, message: Msg) -> None:
        with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
            self._tracing.learn(msgspec.json.decode(message.data, type=Origin))
