"""When calls that lost a context are told so."""

from __future__ import annotations

import pytest

from orisun_server.core.criteria import query
from orisun_server.storage.turns import LONGEST_WAIT, Turns

SEAT = query([[("seat", "1")]])
OTHER = query([[("seat", "2")]])


def test_the_first_is_told_at_once_and_the_others_one_after_the_other() -> None:
    turns = Turns()
    waits = [turns.take(SEAT, 10.0, 0.001) for _ in range(4)]
    assert waits == pytest.approx([0.0, 0.004, 0.008, 0.012])
    assert turns.take(OTHER, 10.0, 0.001) == 0.0
    assert turns.take(SEAT, 10.01, 0.001) == pytest.approx(0.006)


def test_nobody_waits_long_however_many_lost_or_slow_a_flush_was() -> None:
    turns = Turns()
    waits = sorted(turns.take(SEAT, 10.0, 60.0) for _ in range(500))
    assert waits[0] == 0.0
    assert waits[-1] <= LONGEST_WAIT
    # who has no turn of its own comes anywhere between: a quarter of them in each quarter, more or less
    for quarter in range(1, 4):
        assert waits[125 * quarter] == pytest.approx(LONGEST_WAIT * quarter / 4, abs=LONGEST_WAIT / 8)
    assert turns.take(SEAT, 10.0 + LONGEST_WAIT, 0.001) == 0.0


def test_turns_that_are_over_take_no_memory() -> None:
    turns = Turns()
    for number in range(1000):
        turns.take(query([[("seat", str(number))]]), float(number), 0.001)
    assert len(turns._next) <= 2
