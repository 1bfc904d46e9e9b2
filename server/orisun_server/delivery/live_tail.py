"""The live end of a boundary's stream, received once by a server for all of its subscriptions.

It is one ephemeral push consumer without acknowledgements. It starts at "new" and never by time: what was before comes
from PostgreSQL, and a message lost on the way shows as a hole between positions, or in a heartbeat.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog
from nats.aio.msg import Msg
from nats.js import api

from ..core.position import NOTHING, Position
from ..storage.catalog import Boundary
from ..tasks import end, happens
from .inbox import Inbox, Message
from .lookout import Lookout
from .nats import NATS_ERRORS, Connection, Nats
from .stream import POINTER, POSITION, PREVIOUS, parse_position

log = structlog.get_logger(__name__)

#: Seconds between NATS's heartbeats on a silent stream; three missed ones end the consumer's life here.
HEARTBEAT = 1.0
_SILENCE = 3 * HEARTBEAT

#: Seconds for which a tail outlives its last subscription, which often comes back.
LINGER = 5.0

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0
_PENDING_MESSAGES, _PENDING_BYTES = 100_000, 64 * 1024 * 1024


class LiveTail:
    """Hands the messages of one boundary to any number of inboxes.

    ``live`` is whether messages arrive. When it becomes so, and whenever something may have been lost, every inbox
    loses its integrity and its subscription looks at PostgreSQL.
    """

    def __init__(self, boundary: Boundary, nats: Nats, lookout: Lookout) -> None:
        self.boundary = boundary
        self.live = False
        self.inboxes: set[Inbox] = set()
        #: Of the last message.
        self.position = NOTHING
        self._nats, self._lookout = nats, lookout
        self._received = False
        self._delivered = 0
        self._lagging: Position | None = None
        self._task = asyncio.create_task(self._run(), name=f"tail:{boundary.name}")

    async def stop(self) -> None:
        await end([self._task])

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            connection = await self._nats.wait_connected()
            try:
                await self._follow(connection)
                pause = _FIRST_PAUSE
            except NATS_ERRORS as problem:
                log.debug("no live tail", boundary=self.boundary.name, reason=type(problem).__name__)
            except Exception as problem:  # subscriptions read PostgreSQL, and the next attempt follows
                log.warning("the live tail failed", boundary=self.boundary.name, reason=type(problem).__name__)
            finally:
                self.live = False
                self._lose_all()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _follow(self, connection: Connection) -> None:
        """Receives until something is wrong with the connection, the stream or the consumer."""
        client = connection.client
        inbox = client.new_inbox()
        stream = connection.stream_prefix + self.boundary.name
        subscription = await client.subscribe(
            inbox,
            cb=self._receiver(connection),
            pending_msgs_limit=_PENDING_MESSAGES,
            pending_bytes_limit=_PENDING_BYTES,
        )
        try:
            self._delivered = 0
            consumer = await connection.answer(
                connection.jetstream.add_consumer(
                    stream,
                    api.ConsumerConfig(
                        deliver_subject=inbox,
                        deliver_policy=api.DeliverPolicy.NEW,
                        ack_policy=api.AckPolicy.NONE,
                        flow_control=True,
                        idle_heartbeat=HEARTBEAT,
                        inactive_threshold=30,
                        mem_storage=True,
                        num_replicas=1,
                    ),
                )
            )
            try:
                self.live = True
                self._lose_all()
                self._lookout.add(self)
                await self._watch(connection)
            finally:
                self.live = False
                self._lookout.remove(self)
                if not connection.lost.is_set():
                    with contextlib.suppress(*NATS_ERRORS):
                        await connection.jetstream.delete_consumer(stream, consumer.name)
        finally:
            with contextlib.suppress(*NATS_ERRORS):
                await subscription.unsubscribe()

    async def _watch(self, connection: Connection) -> None:
        silent = 0.0
        while silent < _SILENCE:
            self._received = False
            if await happens(connection.lost, HEARTBEAT):
                return
            silent = 0.0 if self._received else silent + HEARTBEAT
        log.info("the live tail fell silent and is made anew", boundary=self.boundary.name)

    def saw(self, _position: Position, _event_id: str | None, head: Position) -> None:
        """Pokes the subscriptions when PostgreSQL was ahead of the stream at two looks: nobody publishes."""
        if self._lagging is not None and self.position < self._lagging:
            for inbox in self.inboxes:
                inbox.poke()
            self.position = self._lagging
        self._lagging = head if head > self.position else None

    def failed(self) -> None:
        """Subscriptions hear it from PostgreSQL, or that the boundary is gone from the catalog."""

    def _receiver(self, connection: Connection) -> Callable[[Msg], Awaitable[None]]:
        async def receive(message: Msg) -> None:
            self._received = True
            headers = message.headers or {}
            if api.Header.STATUS in headers:
                await self._control(connection, message, headers)
                return
            self._delivered += 1
            try:
                position, previous = parse_position(headers[POSITION]), parse_position(headers[PREVIOUS])
            except (KeyError, ValueError):
                return  # not of ours; the publisher mends the stream
            body = None if POINTER in headers else message.data
            event = Message(position, previous, body, headers.get(api.Header.MSG_ID, ""))
            self.position = position
            for inbox in self.inboxes:
                inbox.put(event)

        return receive

    async def _control(self, connection: Connection, message: Msg, headers: dict[str, str]) -> None:
        """Heartbeats tell how many messages were sent to this consumer; flow control waits for an answer."""
        reply = message.reply or headers.get(api.Header.CONSUMER_STALLED)
        if reply:
            await connection.client.publish(reply)
        sent = headers.get(api.Header.LAST_CONSUMER)
        if sent is not None and int(sent) > self._delivered:
            self._delivered = int(sent)
            self._lose_all()

    def _lose_all(self) -> None:
        for inbox in self.inboxes:
            inbox.lose()


class LiveTails:
    """The tails of a server, one a boundary, alive while it has subscriptions."""

    def __init__(self, nats: Nats, lookout: Lookout) -> None:
        self._nats, self._lookout = nats, lookout
        self._tails: dict[str, LiveTail] = {}
        self._lingering: dict[str, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def attach(self, boundary: Boundary, inbox: Inbox) -> LiveTail:
        """The tail of a boundary, which hands its messages to the inbox from now on."""
        if lingering := self._lingering.pop(boundary.name, None):
            lingering.cancel()
        tail = self._tails.get(boundary.name)
        if tail is not None and tail.boundary != boundary:  # it was removed and made anew elsewhere
            self._end(boundary.name)
            tail = None
        if tail is None:
            tail = self._tails[boundary.name] = LiveTail(boundary, self._nats, self._lookout)
        tail.inboxes.add(inbox)
        return tail

    def detach(self, tail: LiveTail, inbox: Inbox) -> None:
        """The inbox wants no more; the last one's tail ends after a while."""
        tail.inboxes.discard(inbox)
        name = tail.boundary.name
        if not tail.inboxes and self._tails.get(name) is tail:
            self._lingering[name] = asyncio.get_running_loop().call_later(LINGER, self._end, name)

    def of(self, boundary: str | None) -> list[LiveTail]:
        """The tail of a boundary, if there is one; all of them for None."""
        return [tail for name, tail in self._tails.items() if boundary in (None, name)]

    async def stop(self) -> None:
        for lingering in self._lingering.values():
            lingering.cancel()
        self._lingering.clear()
        for name in list(self._tails):
            self._end(name)
        await asyncio.gather(*self._closing)

    def _end(self, name: str) -> None:
        self._lingering.pop(name, None)
        closing = asyncio.create_task(self._tails.pop(name).stop(), name=f"tail-end:{name}")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
