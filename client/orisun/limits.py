"""Limits that refuse at once instead of letting calls queue up."""

from __future__ import annotations

from types import TracebackType

from .errors import TooManyCalls, refuse


class Limit:
    """At most ``most`` at a time, None for no limit; entering beyond it raises TooManyCalls at once.

    A semaphore that never waits: a process that is overloaded says so while callers can still do something about it.
    """

    def __init__(self, most: int | None, what: str) -> None:
        if most is not None and most < 1:
            refuse(f"a limit of {most} {what} at a time lets nothing through; give 1 or more, or None")
        self.most, self._what = most, what
        #: How many there are now.
        self.current = 0

    def __enter__(self) -> None:
        if self.most is not None and self.current >= self.most:
            raise TooManyCalls(
                f"{self.current} {self._what} are under way, as many as are allowed at a time; try later"
            )
        self.current += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.current -= 1
