"""Ending background tasks."""

from __future__ import annotations

import asyncio

#: Seconds after which a cancellation is repeated.
_PATIENCE = 0.5


async def end(*tasks: asyncio.Task[object] | asyncio.Future[object] | None) -> None:
    """Cancels tasks and waits for their end; what they raise is theirs.

    Cancels again when a task goes on: a cancellation that meets the end of an ``asyncio.wait_for`` is lost before
    Python 3.12 (python/cpython#86296), also in libraries.
    """
    pending = {task for task in tasks if task is not None and not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_PATIENCE)
