"""When calls that lost a context are told so.

Told at once, all of them would come back at once, and all but one in vain: fifty callers on one context would make
fifty attempts for each success. Told one after the other, most succeed the second time. A call that lost alone, while
nobody else has a turn, is told at once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from ..core.criteria import Query

#: Flushes between two turns: who comes back reads first, then appends, and each takes about a flush and its way.
_FLUSHES = 4.0
#: Seconds that nobody waits longer than.
LONGEST_WAIT = 0.2


class Turns:
    """The turns of one boundary's contexts; forgotten when they are over."""

    def __init__(self) -> None:
        self._next: dict[Query, float] = {}

    def take(self, lost: Sequence[Query], now: float, flush: float) -> list[float]:
        """Seconds until each of the calls that lost these contexts in one flush is told; the flush took ``flush``."""
        self._next = {query: at for query, at in self._next.items() if at > now}
        calls = Counter(lost)
        return [self._turn(query, now, flush) if calls[query] > 1 or query in self._next else 0.0 for query in lost]

    def _turn(self, query: Query, now: float, flush: float) -> float:
        turn = self._next.get(query, now)
        latest = now + LONGEST_WAIT
        self._next[query] = min(turn + _FLUSHES * flush, latest)
        # more than have room: anywhere between the others, not all at the end
        return turn - now if turn < latest else random.uniform(0, LONGEST_WAIT)  # noqa: S311 - no secret
