"""Denied calls and failed logins that wait to be written: told together, and so that nobody hides behind a flood.

Each source (user name and address) has an allowance of its own besides that of all, and who has used least of it comes
first; signed-in users come before strangers. What is too much is counted, by source. Pure.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..core.users import Caller
from .logins import network_of

#: Seconds within which denials of one kind (caller, rpc, boundary) are one event with their number.
WINDOW = 60.0
#: Events of all sources that may be written at once, and seconds in which one more may be.
BURST, REFILL = 60.0, 10.0
#: The same for each source.
BURST_OF_SOURCE, REFILL_OF_SOURCE = 10.0, 60.0
#: Sources, and kinds of each, that are told apart at a time.
MOST_SOURCES, MOST_KINDS = 200, 20

#: Type of the event, who, about what.
Kind = tuple[str, Caller, tuple[tuple[str, str], ...]]
#: User name and address; of who is not signed in "" and the network.
Source = tuple[str, str]


@dataclass
class Noted:
    """Denials of one kind: how many, and the times of the first and the last (seconds since the epoch)."""

    count: int
    first_at: float
    last_at: float

    def add(self, other: Noted) -> None:
        self.count += other.count
        self.first_at, self.last_at = min(self.first_at, other.first_at), max(self.last_at, other.last_at)


class _Spent:
    """Events that were written; they are forgotten with time."""

    def __init__(self, refill: float) -> None:
        self._refill, self._value, self._at = refill, 0.0, 0.0

    def at(self, now: float) -> float:
        return max(0.0, self._value - (now - self._at) / self._refill)

    def add(self, now: float) -> None:
        self._value, self._at = self.at(now) + 1, now


class Denials:
    """What waits, what may be written now, and what was too much. Times are of one clock, in seconds."""

    def __init__(self) -> None:
        self._pending: dict[Source, dict[Kind, Noted]] = {}
        self._written: dict[Kind, float] = {}
        self._spent, self._spent_by = _Spent(REFILL), dict[Source, _Spent]()
        #: Denials that are told by number only, by source; of more sources than are told apart without the address.
        self.omitted: Counter[Source] = Counter()

    def __bool__(self) -> bool:
        return bool(self._pending or self.omitted)

    def note(self, kind: Kind, noted: Noted) -> None:
        source = source_of(kind)
        kinds = self._pending.get(source)
        if kinds is None:
            if len(self._pending) >= MOST_SOURCES:
                crowd = self._crowd()
                self._omit_all(max(self._pending, key=lambda one: (*_standing(one, crowd), len(self._pending[one]))))
            kinds = self._pending[source] = {}
        if kind in kinds:
            kinds[kind].add(noted)
        elif len(kinds) < MOST_KINDS:
            kinds[kind] = noted
        else:
            self.omit(source, noted.count)

    def due(self, now: float, *, last: bool = False) -> list[Kind]:
        """The kinds that may be written now, who has had the fewest events of late first; with ``last`` also those
        whose window has not passed."""
        self._written = {kind: at for kind, at in self._written.items() if now - at < WINDOW}
        self._spent_by = {source: spent for source, spent in self._spent_by.items() if spent.at(now) > 0}
        ranked = []
        crowd = self._crowd()
        for source, kinds in self._pending.items():
            spent = self._spent_by[source].at(now) if source in self._spent_by else 0.0
            ready = [kind for kind in kinds if last or kind not in self._written]
            ranked += [
                ((spent + place, *_standing(source, crowd)), kind)
                for place, kind in enumerate(ready)
                if spent + place <= BURST_OF_SOURCE - 1
            ]
        ranked.sort(key=lambda one: one[0])
        return [kind for _, kind in ranked[: max(0, int(BURST - self._spent.at(now)))]]

    def take(self, kind: Kind) -> Noted | None:
        """Takes a kind out, to be written; then say so with ``written``, ``note`` it again, or ``omit`` it. None where
        it had to make room meanwhile."""
        source = source_of(kind)
        kinds = self._pending.pop(source, {})
        noted = kinds.pop(kind, None)
        if kinds:
            # behind the others, whose turn it is now
            self._pending[source] = kinds
        return noted

    def written(self, kind: Kind, now: float) -> None:
        self._written[kind] = now
        self._spent.add(now)
        self._spent_by.setdefault(source_of(kind), _Spent(REFILL_OF_SOURCE)).add(now)

    def omit(self, source: Source, count: int) -> None:
        if source not in self.omitted and len(self.omitted) >= MOST_SOURCES:
            source = (source[0], "")
        self.omitted[source] += count

    def _crowd(self) -> Counter[str]:
        """From how many addresses each user is denied."""
        return Counter(username for username, _ in self._pending)

    def omit_everything(self) -> None:
        for source in list(self._pending):
            self._omit_all(source)

    def _omit_all(self, source: Source) -> None:
        self.omit(source, sum(noted.count for noted in self._pending.pop(source).values()))


def source_of(kind: Kind) -> Source:
    """Whom a denial is counted to."""
    _, by, _ = kind
    return by.username, by.peer if by.username else network_of(by.peer)


def _standing(source: Source, crowd: Counter[str]) -> tuple[bool, int]:
    """Less is better: who is signed in comes before strangers, and before who comes from many addresses at once."""
    return not source[0], crowd[source[0]]
