"""Endless streams without asyncio."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

from .. import streaming
from ..events import Event
from ..pubsub import Message
from ..subscription import Subscription as AioSubscription
from .background import LOOP, Face, like

T = TypeVar("T")


class LiveStream(Face[streaming.LiveStream[T]], Generic[T]):
    """An endless stream of items; iterate over it, inside ``with`` so that it ends when you leave.

    ``close`` may be called from another thread: iteration stops. Threads that iterate over one stream share its items.
    """

    def __init__(self, aio: streaming.LiveStream[T]) -> None:
        super().__init__(aio)
        self._items: deque[T] = deque()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        LOOP.run(self.aio.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        """The next item, as soon as there is one."""
        with self._lock:
            self._receive(streaming.BUFFER, None)
            if not (taken := self._taken(1)):
                raise StopIteration
            return taken[0]

    @like(streaming.LiveStream.batch)
    def batch(self, most: int, *, timeout: float | None = None) -> list[T]:
        began = time.monotonic()
        # another thread may be waiting for an item
        if not self._lock.acquire(timeout=-1 if timeout is None else max(timeout, 0)):
            return []
        try:
            self._receive(most, None if timeout is None else timeout - (time.monotonic() - began))
            return self._taken(most)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Ends the stream; items that were received already are dropped."""
        LOOP.run(self.aio.aclose())
        self._items.clear()

    def _receive(self, most: int, timeout: float | None) -> None:
        """Wait for items where there are none."""

        async def receive() -> None:
            # in the loop: who is interrupted while waiting finds them here the next time
            self._items.extend(await self.aio.batch(most, timeout=timeout))

        if not self._items:
            LOOP.run(receive())

    def _taken(self, most: int) -> list[T]:
        taken: list[T] = []
        # not by their number: another thread may close the stream meanwhile
        with contextlib.suppress(IndexError):
            while len(taken) < most:
                taken.append(self._items.popleft())
        return taken


class Subscription(LiveStream[Event]):
    __doc__ = AioSubscription.__doc__

    def __init__(self, aio: AioSubscription) -> None:
        super().__init__(aio)
        #: The position of the last event handed out, at first the one that the subscription began after.
        self.position = aio.position
        self.boundary, self.name, self.query = aio.boundary, aio.name, aio.query
        self._reconnects: Callable[[], int] = lambda: aio.reconnects

    @property
    def reconnects(self) -> int:
        """How often the stream was opened again after it was lost."""
        return self._reconnects()

    def _taken(self, most: int) -> list[Event]:
        taken = super()._taken(most)
        self.position = taken[-1].position if taken else self.position
        return taken


class Messages(LiveStream[Message]):
    """The messages of a subject; see ``Client.messages``."""
