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
    assert max(turns.take(SEAT, 10.0, 60.0) for _ in range(500)) == pytest.approx(LONGEST_WAIT)
    assert turns.take(SEAT, 10.0 + LONGEST_WAIT, 0.001) == 0.0


def test_turns_that_are_over_take_no_memory() -> None:
    turns = Turns()
    for number in range(1000):
        turns.take(query([[("seat", str(number))]]), float(number), 0.001)
    assert len(turns._next) <= 2
