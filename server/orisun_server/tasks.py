"""Ending tasks, and waiting with a limit, where asyncio of Python 3.11 would lose a cancellation.

Its ``wait_for`` swallows a cancellation that arrives together with the result, and nats-py swallows some of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

_AGAIN = 0.5


async def end(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancels tasks until they have ended; what they raise is not of interest any more."""
    ending = list(tasks)
    while pending := [task for task in ending if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_AGAIN)
    for task in ending:
        if not task.cancelled():
            task.exception()  # asyncio complains of those that nobody looked at


async def happens(event: asyncio.Event, seconds: float) -> bool:
    """Whether an event is set within that time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
