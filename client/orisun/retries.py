"""When to try again, and how soon."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .errors import refuse


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Tries again up to ``attempts`` times in all, after pauses drawn at random from [0, ``first`` * 2 ** n] seconds
    ("full jitter": clients that failed together do not come back together), none longer than ``longest``.

    ``RetryPolicy(attempts=1)`` never tries again. A call's deadline ends retries too.
    """

    attempts: int = 10
    first: float = 0.1
    longest: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first < 0 or self.longest < self.first:
            refuse("a RetryPolicy has attempts >= 1 and 0 <= first <= longest (seconds)")

    def pause(self, failures: int) -> float:
        """Seconds to wait after the ``failures``-th failure in a row (1 is the first)."""
        bound = min(self.first * 2 ** min(failures - 1, 30), self.longest)
        return random.uniform(0, bound)  # noqa: S311 - jitter, no secret

    def allows(self, failures: int) -> bool:
        """Whether another attempt may follow that many failures."""
        return failures < self.attempts


#: Never tries again.
NEVER = RetryPolicy(attempts=1)
