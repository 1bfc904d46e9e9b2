"""Streams that outlive their connections: received in the background, into a buffer of bounded size."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from .calls import Calls, Opened
from .errors import ClientClosed, OrisunError, refuse

T = TypeVar("T")

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs

#: Items received ahead of the one that is being worked on; what is beyond waits in the server.
BUFFER = 500
#: Bytes of messages after which receiving pauses too: 500 large events would not be a bound.
BUFFER_BYTES = 16 * 1024 * 1024
#: Failures in a row between two words to the log about a stream that is lost; about half a minute.
_LOG_EVERY = 30

_LOG = logging.getLogger("orisun")

#: Seconds after which a stream that brought nothing is a quiet one, not one that failed.
_LASTING = 5.0
#: Statuses after which a stream that was open is opened again.
_PASSING = frozenset({
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL,
    grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED, grpc.StatusCode.OK,
})  # fmt: skip


class LiveStream(ABC, Generic[T]):
    """An endless stream of items; iterate over it, inside ``async with`` so that it ends when you leave.

    It opens at the first use, and again whenever the connection or the server is lost, which the logger ``orisun`` is
    told.
    """

    #: Whether it loses nothing when it is opened again at another server.
    _may_move = False

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        #: The call that was asked to end, because another server should take it.
        self._left: Any = None
        self._items: deque[T] = deque()
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self._drained = asyncio.Event()
        self._connected = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._ended: OrisunError | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        """Waits until a server has taken the call. Raises what ends it before that; what it refuses later on, such as a
        name that is taken, is raised by the first item."""
        self._start()
        waiting = asyncio.ensure_future(self._connected.wait())
        try:
            await asyncio.wait((waiting, self._running), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.aclose()
            raise
        finally:
            waiting.cancel()
        if self._ended is not None and not self._items:
            raise self._ended
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """The next item, as soon as there is one. Cancelling it loses nothing."""
        self._start()
        while not self._items:
            if self._closed:
                raise StopAsyncIteration
            if self._ended is not None:
                raise self._ended
            self._changed.clear()
            await self._changed.wait()
        return self._take()

    async def batch(self, most: int, *, timeout: float | None = None) -> list[T]:
        """The items that are there, at most ``most``; waits for the first of them for ``timeout`` seconds (None: as
        long as it takes). An empty list when none came."""
        if most < 1:
            refuse(f"a batch of {most} items holds nothing; give 1 or more")
        try:
            async with asyncio.timeout(timeout):
                batch = [await anext(self)]
        except (TimeoutError, StopAsyncIteration):
            return []
        while self._items and len(batch) < most:
            batch.append(self._take())
        return batch

    async def aclose(self) -> None:
        """Ends the stream. Iteration stops after the items that were received already are dropped."""
        self._closed = True
        self._items.clear()
        self._sizes.clear()
        self._bytes = 0
        self._changed.set()
        # a loop that is closed runs nothing any more, and cannot be waited for
        if self._pump is not None and not self._pump.done() and not self._pump.get_loop().is_closed():
            self._pump.cancel()
            # not by awaiting it: its cancellation and that of the caller would be one
            await asyncio.wait((self._pump,))

    def _take(self) -> T:
        item = self._items.popleft()
        self._bytes -= self._sizes.popleft()
        if len(self._items) <= BUFFER // 2 and self._bytes <= BUFFER_BYTES // 2:
            self._drained.set()
        self._handed_out(item)
        return item

    def _start(self) -> None:
        if self._pump is None and not self._closed:
            self._calls.check_open()
            self._pump = asyncio.create_task(self._run(), name=f"orisun-{self._what()}")

    @property
    def _running(self) -> asyncio.Task[None]:
        if self._pump is None:
            raise ClientClosed("the stream is closed; make a new one")
        return self._pump

    async def _run(self) -> None:
        try:
            failures = 0
            while True:
                opened = await self._open()
                thrived, error = await self._receive(opened)
                if thrived or error is None:
                    failures = 0
                if error is None:
                    self._moved()
                    continue
                if error.code() is grpc.StatusCode.UNAUTHENTICATED and self._calls.may_login_again(opened.metadata):
                    continue
                failures += 1
                if not self._outlives(error, failures):
                    raise self._translated(error)
                if self._connected.is_set() and failures % _LOG_EVERY == 1:
                    reason = (error.code().name, error.details())
                    _LOG.warning("%s was lost and is opened again: %s: %s", self._what(), *reason)
                await asyncio.sleep(self._calls.retry.pause(failures))
        except OrisunError as error:
            self._ended = error
        except asyncio.CancelledError:
            self._ended = ClientClosed("the client was closed")
            raise
        except Exception as error:  # a broken stream must end its reader, not leave it waiting
            self._ended = OrisunError(f"the {self._what()} failed: {type(error).__name__}")
            self._ended.__cause__ = error
        finally:
            self._changed.set()

    async def _receive(self, opened: Opened) -> tuple[bool, grpc.aio.AioRpcError | None]:
        """Receives until the stream fails: whether it brought anything or lasted, and why it failed; None where it is
        to move."""
        call = opened.call
        leave = functools.partial(self._leave, call)
        if self._may_move:
            opened.endpoint.leaving.add(leave)
        opened.endpoint.began()
        error: grpc.aio.AioRpcError | None
        began, brought = time.monotonic(), False
        try:
            await call.initial_metadata()
            if not call.done():
                await self._calls.learn(call)
                self._connected.set()
                self._opened()
            while (message := await call.read()) is not _EOF:
                brought = True
                item = self._accept(message)
                if item is None:
                    continue
                self._items.append(item)
                self._sizes.append(size := message.ByteSize())
                self._bytes += size
                self._changed.set()
                if len(self._items) >= BUFFER or self._bytes >= BUFFER_BYTES:
                    self._drained.clear()
                    await self._drained.wait()
            error = _end_of_stream()
        except grpc.aio.AioRpcError as failed:
            error = failed
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._left is not call or (task is not None and task.cancelling()):
                raise
            error = None
        except grpc.aio.UsageError:
            self._calls.check_open()
            raise
        finally:
            opened.endpoint.leaving.discard(leave)
            call.cancel()
            opened.endpoint.ended()
        # a server that takes calls and fails at once is not asked again at once
        return brought or time.monotonic() - began > _LASTING, error

    def _leave(self, call: Any) -> None:
        """End a call, so that another server takes the stream; what it brought and nobody has read yet stays."""
        self._left = call
        call.cancel()

    def _outlives(self, error: grpc.aio.AioRpcError, failures: int) -> bool:
        """Whether the stream goes on after this failure: for ever once it was open, else as the policy says."""
        if error.code() not in _PASSING:
            return False
        return self._connected.is_set() or self._calls.retry.allows(failures)

    def _translated(self, error: grpc.aio.AioRpcError) -> OrisunError:
        return self._calls.error(error)

    def _opened(self) -> None:
        """A server has taken the call."""

    def _moved(self) -> None:
        """The stream has left its server, to be opened again."""

    def _handed_out(self, item: T) -> None:
        """The reader has got an item."""

    @abstractmethod
    def _what(self) -> str:
        """What the stream is, for names and messages."""

    @abstractmethod
    async def _open(self) -> Opened:
        """Makes the call."""

    @abstractmethod
    def _accept(self, message: Any) -> T | None:
        """The item that a message brings; None to leave it out."""


def _end_of_stream() -> grpc.aio.AioRpcError:
    """A server that ends an endless stream without an error is going away."""
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, empty, empty, "the server ended the stream", None)
