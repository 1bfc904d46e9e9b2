"""What a history of appends, reads and subscriptions must look like, whatever happened meanwhile.

Clients record what they sent and what they were told; at the end the log is read and everything is held against it.
The log is the only thing that is trusted, and only as a sequence: ``History.check`` first proves it to be one.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from orisun_server.core.position import NOTHING, Position

#: A criterion: tags that all must match. Contexts are several of them; () is the whole boundary, None no context.
Tags = Mapping[str, str]


class Stored(NamedTuple):
    """An event of the log; ``tags`` are the top level of its data, as text."""

    position: Position
    event_id: str
    tags: Tags


@dataclass
class Attempt:
    """One SaveEvents, from the first time that it was sent until its answer, repeats included."""

    ids: tuple[str, ...]
    criteria: tuple[Tags, ...] | None
    expected: Position
    sent: float
    answered: float = math.inf
    #: What it was told: the position of its last event, or the actual position of a conflict.
    position: Position | None = None
    conflict: Position | None = None


def matches(criteria: Iterable[Tags], tags: Tags) -> bool:
    """OR over criteria, AND over tags; no criteria match everything."""
    wanted = list(criteria)
    return not wanted or any(all(tags.get(key) == value for key, value in one.items()) for one in wanted)


@dataclass
class History:
    """All attempts on one boundary, and what holds between them and the log."""

    attempts: list[Attempt] = field(default_factory=list)
    _answered: dict[object, tuple[list[float], list[Position]]] = field(default_factory=dict, repr=False)

    @property
    def acknowledged(self) -> dict[str, Position]:
        """Position of the last event of the call, by the call's first id."""
        return {attempt.ids[0]: attempt.position for attempt in self.attempts if attempt.position is not None}

    @property
    def conflicts(self) -> int:
        return sum(attempt.conflict is not None for attempt in self.attempts)

    def check(self, log: Sequence[Stored]) -> None:
        """No lost update, no double success, order of commits, atomic calls, exactly what was acknowledged."""
        check_sequence(log)
        self._check_acknowledged(log)
        self._check_contexts(log)
        self._check_real_time()

    def check_fresh(self, log: Sequence[Stored], sent: float, seen: Position, criteria: Sequence[Tags] = ()) -> None:
        """A read that was sent then and found ``seen`` as the latest had all that was acknowledged before."""
        key = tuple(tuple(sorted(one.items())) for one in criteria)
        if key not in self._answered:
            tags = {event.event_id: event.tags for event in log}
            position = {event.event_id: event.position for event in log}
            answered = sorted(
                (attempt.answered, position[event_id])
                for attempt in self.attempts
                if attempt.position is not None
                for event_id in attempt.ids
                if matches(criteria, tags[event_id])
            )
            highest = list(itertools.accumulate((at for _, at in answered), max))
            self._answered[key] = [time for time, _ in answered], highest
        times, highest = self._answered[key]
        before = bisect.bisect_left(times, sent)
        assert not before or seen >= highest[before - 1], f"{seen} is older than {highest[before - 1]}"

    def _check_acknowledged(self, log: Sequence[Stored]) -> None:
        number = {event.event_id: index for index, event in enumerate(log)}
        known = {event_id for attempt in self.attempts for event_id in attempt.ids}
        assert number.keys() <= known, f"nobody sent {sorted(number.keys() - known)[:3]}"
        for attempt in self.attempts:
            found = [event_id for event_id in attempt.ids if event_id in number]
            if attempt.position is not None:
                assert len(found) == len(attempt.ids), f"acknowledged and lost: {attempt}"
                assert log[number[attempt.ids[-1]]].position == attempt.position, attempt
            elif attempt.conflict is not None:
                assert not found, f"refused and stored: {attempt}"
            else:
                assert len(found) in (0, len(attempt.ids)), f"stored in part: {attempt}"
            if found:
                first = number[attempt.ids[0]]
                events = log[first : first + len(attempt.ids)]
                assert tuple(event.event_id for event in events) == attempt.ids, f"torn apart: {attempt}"
                # all events of a call carry the last one's global id + 1
                assert {event.position.commit for event in events} == {events[-1].position.prepare + 1}, attempt

    def _check_contexts(self, log: Sequence[Stored]) -> None:
        """Replays the log: each call with a context decided on the latest event that matches it, so the calls that
        succeeded form one chain for each context."""
        number = {event.event_id: index for index, event in enumerate(log)}
        latest = _Latest(log)
        for attempt in self.attempts:
            if attempt.criteria is None:
                continue
            index = number.get(attempt.ids[0])
            if index is not None:
                before = latest.before(attempt.criteria, index)
                assert before == attempt.expected, f"lost update: {attempt} follows {before}"
            elif attempt.conflict is not None:
                assert attempt.conflict != attempt.expected, f"no conflict: {attempt}"
                assert attempt.conflict == NOTHING or attempt.conflict in latest.positions(attempt.criteria), attempt

    def _check_real_time(self) -> None:
        """A call that was answered before another was sent lies before it."""
        answered = sorted((a.answered, a.position) for a in self.attempts if a.position is not None)
        times = [time for time, _ in answered]
        highest = list(itertools.accumulate((position for _, position in answered), max))
        for attempt in self.attempts:
            before = bisect.bisect_left(times, attempt.sent)
            if before and attempt.position is not None:
                assert attempt.position > highest[before - 1], f"{attempt} lies before {highest[before - 1]}"


class _Latest:
    """Positions of the events of a log that match a context."""

    def __init__(self, log: Sequence[Stored]) -> None:
        self._log = log
        self._found: dict[tuple[tuple[tuple[str, str], ...], ...], tuple[list[int], list[Position]]] = {}

    def _matching(self, criteria: Sequence[Tags]) -> tuple[list[int], list[Position]]:
        key = tuple(tuple(sorted(one.items())) for one in criteria)
        if key not in self._found:
            numbers = [number for number, event in enumerate(self._log) if matches(criteria, event.tags)]
            self._found[key] = numbers, [self._log[number].position for number in numbers]
        return self._found[key]

    def before(self, criteria: Sequence[Tags], index: int) -> Position:
        numbers, positions = self._matching(criteria)
        found = bisect.bisect_left(numbers, index)
        return positions[found - 1] if found else NOTHING

    def positions(self, criteria: Sequence[Tags]) -> list[Position]:
        return self._matching(criteria)[1]


def check_sequence(log: Sequence[Stored]) -> None:
    """Positions strictly increase, both parts in step, and no id is there twice."""
    for one, next_ in itertools.pairwise(log):
        assert one.position < next_.position, (one, next_)
        assert one.position.prepare < next_.position.prepare, (one, next_)
    assert len({event.event_id for event in log}) == len(log), "an event is stored twice"


def check_prefix(log: Sequence[Stored], seen: Sequence[Stored], criteria: Sequence[Tags] = ()) -> None:
    """What a reader saw from the beginning is a beginning of the log: nothing later without all that is earlier."""
    expected = [event for event in log if matches(criteria, event.tags)][: len(seen)]
    assert list(seen) == expected, _difference(expected, seen)


def check_run(log: Sequence[Stored], seen: Sequence[Stored]) -> None:
    """What a reader saw in one page, in ascending order, is a part of the log without holes."""
    if seen:
        first = log.index(seen[0])
        expected = log[first : first + len(seen)]
        assert list(seen) == list(expected), _difference(expected, seen)


def check_snapshot(
    log: Sequence[Stored], criteria: Sequence[Tags], found: Sequence[Position | None], context: Position
) -> None:
    """The latest events of several criteria belong to one moment: some beginning of the log has exactly them."""
    assert context == max((position for position in found if position is not None), default=NOTHING)
    latest = _Latest(log)
    since, until = NOTHING, Position(2**63 - 1, 2**63 - 1)
    for criterion, position in zip(criteria, found, strict=True):
        positions = latest.positions([criterion])
        after = bisect.bisect_right(positions, position) if position is not None else 0
        assert position is None or positions[after - 1] == position, f"{position} is no position of {criterion}"
        since = max(since, position or NOTHING)
        until = min(until, positions[after] if after < len(positions) else until)
    assert since < until, f"{found} are of different moments"


def check_delivered(
    log: Sequence[Stored], delivered: Sequence[Stored], criteria: Sequence[Tags] = (), after: Position = NOTHING
) -> None:
    """A subscriber has every matching event after its start exactly once and in order."""
    expected = [event for event in log if event.position > after and matches(criteria, event.tags)]
    assert list(delivered) == expected, _difference(expected, delivered)


def _difference(expected: Sequence[Stored], found: Sequence[Stored]) -> str:
    for number, (one, other) in enumerate(itertools.zip_longest(expected, found)):
        if one != other:
            return f"{len(expected)} expected, {len(found)} found; number {number} is {other} instead of {one}"
    return "equal"
