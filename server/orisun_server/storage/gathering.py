"""How long a flush waits for calls that are on their way, where the transport hands them over one at a time.

grpcio's server takes one call at a turn of the event loop (``request_call`` in its ``_server_main_loop``), so of many
callers few ever wait here together, and each flush would carry two or three calls however many there are. The best
group is half of the callers: one half is stored while the other half comes in. How many there are shows when a flush
is held up until nobody else comes; that is done now and then, and only when calls came during the flush before. A lone
caller is never held up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sized

from ..tasks import happens

#: Callers are counted again after so many seconds, for so many at most, and until so many have come.
_COUNT_EVERY, _COUNT_SECONDS, _COUNT_CALLS = 0.25, 0.05, 100
#: While counting: all are there when nobody has come for twice as long as the last flush took, within these bounds in
#: seconds.
_LEAST_GAP, _LONGEST_GAP = 0.001, 0.005
#: Seconds that half of the callers are waited for; they may have left.
_PATIENCE = 0.01


class Gathering:
    """What one lane knows of its callers."""

    def __init__(self) -> None:
        #: Callers that were there at the last count.
        self.callers = 1
        self._count_at = 0.0
        self._wanted = 0
        self._enough = asyncio.Event()

    def came(self, waiting: int) -> None:
        """Another call was queued; so many wait now."""
        if waiting >= self._wanted:
            self._enough.set()

    async def wait(self, queue: Sized, seconds: float, most: int | None = None) -> None:
        """Waits until a flush of the queue is worth it.

        ``seconds`` is what the flush before took, ``most`` how many calls went into it if no more did.
        """
        if not queue:
            return
        now = time.monotonic()
        if now >= self._count_at:
            gap = min(max(2 * seconds, _LEAST_GAP), _LONGEST_GAP)
            until = now + _COUNT_SECONDS
            while len(queue) < _COUNT_CALLS and time.monotonic() < until:
                if not await self._are(len(queue) + 1, queue, gap):
                    break
            self._count_at = time.monotonic() + _COUNT_EVERY
        elif await self._are(min(self.callers // 2, most or _COUNT_CALLS), queue, _PATIENCE):
            return
        # some may only have been slow to come
        self.callers = min(max(len(queue), self.callers * 3 // 4), _COUNT_CALLS)

    async def _are(self, wanted: int, queue: Sized, seconds: float) -> bool:
        """Whether so many calls wait within that time."""
        if len(queue) >= wanted:
            return True
        self._wanted = wanted
        self._enough.clear()
        return await happens(self._enough, seconds)
