"""Equal reads at the same time share one.

Fifty callers that fight for one context all ask for its latest event. A read may be shared by whoever asked before it
began, and by nobody else: an answer is never older than its question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedReads(Generic[T]):
    """For each key one read runs and at most one waits; who comes while one runs joins the one that waits."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[T]] = {}
        self._waiting: dict[Hashable, asyncio.Task[T]] = {}

    async def __call__(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """The result of a read of that key that begins from now on."""
        task = self._waiting.get(key)
        if task is None:
            task = self._waiting[key] = asyncio.create_task(self._read(key, read, self._running.get(key)))
            task.add_done_callback(_looked_at)
        # a caller that leaves takes the read from nobody
        return await asyncio.shield(task)

    async def _read(self, key: Hashable, read: Callable[[], Awaitable[T]], before: asyncio.Task[T] | None) -> T:
        if before is not None:
            await asyncio.wait([before])
        task = self._running[key] = self._waiting.pop(key)
        try:
            return await read()
        finally:
            if self._running.get(key) is task:
                del self._running[key]


def _looked_at(task: asyncio.Task[T]) -> None:
    if not task.cancelled():
        task.exception()
