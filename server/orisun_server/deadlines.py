"""How long who called is going to wait, told to those who decide when to answer.

The transport knows it of the call that runs; what runs elsewhere for the call takes it along.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar


def _without_end() -> float | None:
    return None


#: Tells the seconds that the call that runs in this context has left; None without a deadline.
time_left: ContextVar[Callable[[], float | None]] = ContextVar("orisun_time_left", default=_without_end)
