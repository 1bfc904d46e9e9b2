"""When calls that lost a context are told so.

Told at once, all of them would come back at once, and all but one in vain: fifty callers on one context would make
fifty attempts for each success. Told one after the other, most succeed the second time. A call that lost alone is told
at once.
"""

from __future__ import annotations

import random

from ..core.criteria import Query

#: Flushes between two turns: who comes back reads first, then appends, and each takes about a flush and its way.
_FLUSHES = 4.0
#: Seconds that nobody waits longer than.
LONGEST_WAIT = 0.2


class Turns:
    """The turns of one boundary's contexts; forgotten when they are over."""

    def __init__(self) -> None:
        self._next: dict[Query, float] = {}

    def take(self, query: Query, now: float, flush: float) -> float:
        """Seconds until the next call that lost this context is told; ``flush`` is how long one takes, in seconds."""
        turn = self._next.get(query, now)
        if turn <= now:
            turn = now
            self._next = {other: at for other, at in self._next.items() if at > now}
        latest = now + LONGEST_WAIT
        self._next[query] = min(turn + _FLUSHES * flush, latest)
        # more than have room: anywhere between the others, not all at the end
        return turn - now if turn < latest else random.uniform(0, LONGEST_WAIT)  # noqa: S311 - no secret
