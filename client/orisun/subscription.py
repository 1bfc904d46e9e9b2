"""Following a boundary: stored events first, then new ones as they come, each once and in order."""

from __future__ import annotations

import asyncio

import grpc

from orisun_api import eventstore_pb2 as pb

from .calls import Calls, Opened
from .codecs import EventTypes
from .errors import AlreadyExists, OrisunError, SubscriberInUse
from .events import Event
from .position import Position
from .queries import Query
from .streaming import LiveStream
from .wire import event_of, position_message, position_of, query_message

#: Seconds for which a name may still be taken by this subscription's own past: a server that died holds it for 10, and
#: one that lives notices within 30 that a connection is dead which the client has given up already.
_NAME_PATIENCE = 45.0


class Subscription(LiveStream[Event]):
    """The events of a boundary that match a query, after a position, without end; see ``Boundary.subscribe``.

    After a lost connection it goes on after the last event that was received; positions that came already are dropped,
    so each event comes once, for as long as this object lives. ``position`` is that of the last event handed out: keep
    it together with what you did, and a later subscription after it goes on exactly there.
    """

    _may_move = True

    def __init__(
        self, calls: Calls, types: EventTypes, *, boundary: str, name: str, query: Query, after: Position | None
    ) -> None:
        super().__init__(calls)
        self._types = types
        self.boundary, self.name, self.query = boundary, name, query
        #: The position of the last event handed out, at first the one that the subscription began after.
        self.position = after
        #: How often the stream was opened again, after it was lost or moved to a server that was added.
        self.reconnects = 0
        self._received = after
        self._lost_at: float | None = None
        self._opened_before = self._counted = False

    def _what(self) -> str:
        return f'subscription "{self.name}" of boundary "{self.boundary}"'

    async def _open(self) -> Opened:
        self._counted = False
        request = pb.CatchUpSubscribeToEventStoreRequest(
            boundary=self.boundary,
            subscriber_name=self.name,
            query=query_message(self.query),
            after_position=position_message(self._received) if self._received is not None else None,
        )
        return await self._calls.stream("CatchUpSubscribeToEvents", request)

    def _opened(self) -> None:
        self._counted = self._opened_before
        self.reconnects += self._counted
        self._opened_before = True

    def _accept(self, message: pb.Event) -> Event | None:
        position = position_of(message.position)
        if self._received is not None and position <= self._received:
            return None
        event = event_of(message, self._types)
        self._received = position
        return event

    def _moved(self) -> None:
        # the server that it left may hold its name for a moment
        self._lost_at = asyncio.get_running_loop().time()

    def _handed_out(self, item: Event) -> None:
        self.position = item.position

    def _outlives(self, error: grpc.aio.AioRpcError, failures: int) -> bool:
        now = asyncio.get_running_loop().time()
        if error.code() is grpc.StatusCode.ALREADY_EXISTS:
            self.reconnects -= self._counted  # it was refused, a moment after it was taken
            return self._lost_at is not None and now - self._lost_at < _NAME_PATIENCE
        self._lost_at = now
        return super()._outlives(error, failures)

    def _translated(self, error: grpc.aio.AioRpcError) -> OrisunError:
        made = super()._translated(error)
        return SubscriberInUse(str(made)) if type(made) is AlreadyExists else made
