"""When calls that lost a context are told so."""

from __future__ import annotations

import time

import pytest

from orisun_server.core.criteria import query
from orisun_server.storage.turns import LONGEST_WAIT, Turns

SEAT = query([[("seat", "1")]])
OTHER = query([[("seat", "2")]])


def test_the_first_is_told_at_once_and_the_others_one_after_the_other() -> None:
    turns = Turns()
    assert turns.take([SEAT, OTHER, SEAT, SEAT], 10.0, 0.001) == pytest.approx([0.0, 0.0, 0.004, 0.008])
    assert turns.take([OTHER], 10.0, 0.001) == [0.0]
    # who comes later stands behind them, also alone
    assert turns.take([SEAT], 10.01, 0.001) == pytest.approx([0.002])
    assert turns.take([SEAT], 10.01, 0.001) == pytest.approx([0.006])


def test_who_loses_alone_is_told_at_once_each_time() -> None:
    turns = Turns()
    assert [turns.take([SEAT], 10.0 + number / 1000, 0.001) for number in range(5)] == [[0.0]] * 5


def test_nobody_waits_long_however_many_lost_or_slow_a_flush_was() -> None:
    turns = Turns()
    waits = sorted(turns.take([SEAT] * 500, 10.0, 60.0))
    assert waits[0] == 0.0
    assert waits[-1] <= LONGEST_WAIT
    # who has no turn of its own comes anywhere between: a quarter of them in each quarter, more or less
    for quarter in range(1, 4):
        assert waits[125 * quarter] == pytest.approx(LONGEST_WAIT * quarter / 4, abs=LONGEST_WAIT / 8)
    assert turns.take([SEAT, SEAT], 10.0 + LONGEST_WAIT, 0.001)[0] == 0.0


def test_turns_that_are_over_take_no_memory() -> None:
    turns = Turns()
    for number in range(1000):
        turns.take([query([[("seat", str(number))]])] * 2, float(number), 0.001)
    assert len(turns._next) <= 2


def test_many_contexts_that_are_lost_in_one_flush_cost_no_more_each_than_few() -> None:
    lost = [query([[("seat", str(number))]]) for number in range(20_000)] * 2
    began = time.process_time()
    Turns().take(lost, 10.0, 0.001)
    assert time.process_time() - began < 2.0  # one look at all turns for each would take half a minute
