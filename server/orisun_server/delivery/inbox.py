"""What one subscription has not taken yet of a live tail: shared messages, bounded in number and bytes."""

from __future__ import annotations

import asyncio
from collections import deque

from ..core.matching import Values, top_level
from ..core.position import Position
from ..errors import OrisunError
from .codec import decode_content

#: A subscription that falls behind by more reads from PostgreSQL again.
MAX_MESSAGES = 10_000
MAX_BYTES = 4 * 1024 * 1024


class Message:
    """A live event, shared by all subscriptions of a tail; ``body`` is None when it has to be read from PostgreSQL.

    ``key`` is the message's id in the stream (``stream.message_id``).
    """

    __slots__ = ("_content", "body", "key", "position", "previous")

    def __init__(self, position: Position, previous: Position, body: bytes | None, key: str = "") -> None:
        self.position, self.previous, self.body, self.key = position, previous, body, key
        self._content: tuple[str, Values] | None = None

    def content(self) -> tuple[str, Values]:
        """Event type and top level of the data, decoded once for all subscriptions."""
        if self._content is None:
            event_type, data = decode_content(self.body or b"")
            self._content = event_type, top_level(data)
        return self._content


class Inbox:
    """A queue from a tail to a subscription.

    While ``intact``, it holds every message of the tail since ``open``. It stops being so when it overflows, or when
    the tail cannot vouch for having received all; the messages are dropped then, and ``open`` begins anew.
    """

    __slots__ = ("_bytes", "_loop", "_messages", "_poked", "_waiter", "ended", "intact")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._messages: deque[Message] = deque()
        self._bytes = 0
        self._poked = False
        self._waiter: asyncio.Future[None] | None = None
        self.intact = False
        #: done when the subscription has to end, with the reason
        self.ended: asyncio.Future[OrisunError] = self._loop.create_future()

    def open(self) -> None:
        """From now on, keep what the tail receives."""
        self._drop()
        self.intact = True

    def put(self, message: Message) -> None:
        if not self.intact:
            return
        size = len(message.body or b"")
        if len(self._messages) >= MAX_MESSAGES or (self._messages and self._bytes + size > MAX_BYTES):
            self.lose()
            return
        self._messages.append(message)
        self._bytes += size
        if self._waiter is not None:
            self._release()

    def take(self) -> Message | None:
        if not self._messages:
            return None
        message = self._messages.popleft()
        self._bytes -= len(message.body or b"")
        return message

    def lose(self) -> None:
        """What was received is not all any more."""
        self._drop()
        self.intact = False
        self.poke()

    def fail(self, failure: OrisunError) -> None:
        """End the subscription."""
        if not self.ended.done():
            self.ended.set_result(failure)
        self.lose()

    def check(self) -> None:
        """Raises why the subscription has to end, if it has to."""
        if self.ended.done():
            raise self.ended.result()

    def poke(self) -> None:
        """Let the subscription look at PostgreSQL now."""
        self._poked = True
        if self._waiter is not None:
            self._release()

    async def wait(self, seconds: float | None = None) -> bool:
        """Waits for a message, a poke or a failure, at most that long; whether it was a poke."""
        if not self._messages and not self._poked:
            waiter = self._waiter = self._loop.create_future()
            timer = None if seconds is None else self._loop.call_later(seconds, self._release)
            try:
                await waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        poked, self._poked = self._poked, False
        return poked

    def _release(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _drop(self) -> None:
        self._messages.clear()
        self._bytes = 0
