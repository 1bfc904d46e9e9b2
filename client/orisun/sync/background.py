"""One event loop in a thread of its own, and what makes methods of it that block their caller."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import queue
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import aclosing
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from ..errors import OrisunError

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")

#: Items of an iterator that are fetched from the loop at a time.
_CHUNK = 100


class BackgroundLoop:
    """The event loop of all synchronous clients of this process; its thread starts at the first use."""

    def __init__(self) -> None:
        # a signal's handler may come here while its thread is here
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that runs in the loop. When the waiting is interrupted, it is cancelled."""
        future = self.submit(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """What the coroutine comes to in the loop. Raises OrisunError in the loop's own thread."""
        loop = self._running()
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise OrisunError("orisun.sync was called from its own event loop; use the asynchronous face there")
        return asyncio.run_coroutine_threadsafe(coroutine, loop)

    def start(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Runs a coroutine in the loop without waiting for it; while the interpreter ends, nothing is run any more."""
        if sys.is_finalizing() or self._loop is None:
            coroutine.close()
            return
        asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def forget(self) -> None:
        """After a fork: the child has no such thread."""
        self._lock = threading.RLock()
        self._loop = self._thread = None

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="orisun-sync", daemon=True)
                self._thread.start()
            return self._loop


LOOP = BackgroundLoop()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LOOP.forget)


class Caller:
    """A thread that waits for a coroutine in the loop, and does meanwhile what the coroutine asks it to do.

    So functions of the application run where it called from: with its connections, requests and sessions that belong to
    a thread, and without a thread more.
    """

    _current: contextvars.ContextVar[Caller] = contextvars.ContextVar("orisun_caller")

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        #: What was being done when this thread was interrupted.
        self._interrupted: Future[Any] | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of the coroutine, in which ``Caller.do`` leads here.

        When the waiting is interrupted the coroutine is cancelled, and what it then still has to do here is done.
        """

        async def ending() -> T:
            try:
                return await coroutine
            finally:
                self._work.put(None)

        reset = self._current.set(self)
        try:
            future = LOOP.submit(ending())
        except BaseException:
            coroutine.close()
            raise
        finally:
            self._current.reset(reset)
        try:
            self._serve()
        except BaseException:
            future.cancel()
            if self._interrupted is not None:
                self._interrupted.set_exception(OrisunError("the thread that does this was interrupted"))
            self._serve()
            raise
        return future.result()

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    @classmethod
    async def do(cls, function: Callable[[], T]) -> T:
        """The result of a function that the waiting thread calls; any thread, where none is waiting."""
        caller = cls._current.get(None)
        if caller is None:
            return await asyncio.to_thread(_raising_no_stop_iteration, function)
        done: Future[T] = Future()

        def work() -> None:
            if not done.set_running_or_notify_cancel():
                return
            # what is no Exception, such as an interrupt, belongs to the thread: it ends the waiting
            try:
                result = _raising_no_stop_iteration(function)
            except Exception as error:
                done.set_exception(error)
            except BaseException:
                caller._interrupted = done
                raise
            else:
                done.set_result(result)

        caller._work.put(work)
        return await asyncio.wrap_future(done)

    @classmethod
    async def do_to_the_end(cls, function: Callable[[], T]) -> T:
        """``do``, where nobody may go on before it is done: who is cancelled waits for it."""
        doing = asyncio.ensure_future(cls.do(function))
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            await asyncio.wait([doing])
            raise


def _raising_no_stop_iteration(function: Callable[[], T]) -> T:
    """Nothing that waits in a loop can raise it; as in a generator."""
    try:
        return function()
    except StopIteration as error:
        raise RuntimeError("the function raised StopIteration") from error


class Face(Generic[A]):
    """A synchronous object that stands for an asynchronous one, which is its ``aio``."""

    def __init__(self, aio: A) -> None:
        self.aio = aio


def like(original: Callable[..., object]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Gives a function the docstring of the asynchronous one, without its ``async``."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        function.__doc__ = (original.__doc__ or "").replace("async with", "with").replace("async for", "for")
        return function

    return decorate


class blocking(Generic[A, P, T]):
    """A method that runs the asynchronous one of the same name and waits for its result."""

    def __init__(self, function: Callable[Concatenate[A, P], Coroutine[Any, Any, T]]) -> None:
        self._function = function

    @overload
    def __get__(self, face: None, owner: type) -> Callable[Concatenate[Any, P], T]: ...

    @overload
    def __get__(self, face: Face[A], owner: type) -> Callable[P, T]: ...

    def __get__(self, face: Face[A] | None, owner: type) -> Callable[..., T]:
        function = self._function

        @functools.wraps(function)
        def of_class(self: Face[A], *args: P.args, **kwargs: P.kwargs) -> T:
            return LOOP.run(function(self.aio, *args, **kwargs))

        return of_class if face is None else MethodType(of_class, face)


class iterating(Generic[A, P, T]):
    """A method that iterates over what the asynchronous one of the same name yields."""

    def __init__(self, function: Callable[Concatenate[A, P], AsyncIterator[T]]) -> None:
        self._function = function

    @overload
    def __get__(self, face: None, owner: type) -> Callable[Concatenate[Any, P], Iterator[T]]: ...

    @overload
    def __get__(self, face: Face[A], owner: type) -> Callable[P, Iterator[T]]: ...

    def __get__(self, face: Face[A] | None, owner: type) -> Callable[..., Iterator[T]]:
        function = self._function

        @functools.wraps(function)
        def of_class(self: Face[A], *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
            return _iterate(function(self.aio, *args, **kwargs))

        return of_class if face is None else MethodType(of_class, face)


def _iterate(items: AsyncIterator[T]) -> Iterator[T]:
    async def take() -> list[T]:
        chunk: list[T] = []
        async for item in items:
            chunk.append(item)
            if len(chunk) >= _CHUNK:
                break
        return chunk

    async def close() -> None:
        async with aclosing(cast(Any, items)):
            pass

    try:
        while chunk := LOOP.run(take()):
            yield from chunk
            if len(chunk) < _CHUNK:
                return
    finally:
        # an iterator that was left may be collected anywhere: in the loop's own thread, or while the interpreter ends
        # and that thread stands still. Who waited here would wait for ever.
        LOOP.start(close())
