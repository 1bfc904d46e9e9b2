"""Equal reads at the same time share one.

Fifty callers that fight for one context all ask for its latest event. A read may be shared by whoever asked before it
began, and by nobody else: an answer is never older than its question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Read(Generic[T]):
    """A read, and how many wait for it."""

    def __init__(self) -> None:
        self.task: asyncio.Task[T] | None = None
        self.callers = 0


class SharedReads(Generic[T]):
    """For each key one read runs and at most one waits; who comes while one runs joins the one that waits.

    A read is cancelled when the last of its callers leaves.
    """

    def __init__(self) -> None:
        self._running: dict[Hashable, _Read[T]] = {}
        self._waiting: dict[Hashable, _Read[T]] = {}

    async def __call__(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """The result of a read of that key that begins from now on."""
        shared = self._waiting.get(key)
        if shared is None:
            shared = self._waiting[key] = _Read()
            shared.task = asyncio.create_task(self._read(key, shared, read, self._running.get(key)))
        task = shared.task
        if task is None:
            raise RuntimeError("a read without a task")
        shared.callers += 1
        try:
            return await asyncio.shield(task)
        finally:
            shared.callers -= 1
            if not shared.callers and not task.done():
                if self._waiting.get(key) is shared:
                    del self._waiting[key]
                task.cancel()

    async def _read(
        self, key: Hashable, shared: _Read[T], read: Callable[[], Awaitable[T]], before: _Read[T] | None
    ) -> T:
        if before is not None and before.task is not None:
            await asyncio.wait([before.task])
        if self._waiting.get(key) is shared:
            del self._waiting[key]
        self._running[key] = shared
        try:
            return await read()
        finally:
            if self._running.get(key) is shared:
                del self._running[key]
