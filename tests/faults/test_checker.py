"""The checker finds what it is there to find."""

from __future__ import annotations

import dataclasses

import pytest

from orisun_server.core.position import NOTHING, Position
from tests.faults import checker
from tests.faults.checker import Attempt, History, Stored

A, B = {"a": "1"}, {"b": "1"}
#: a call of two events, then one of one
LOG = [Stored(Position(2, 0), "i", A), Stored(Position(2, 1), "j", B), Stored(Position(3, 2), "k", A)]
FIRST = Attempt(("i", "j"), (A,), NOTHING, 0.0, 1.0, Position(2, 1))
SECOND = Attempt(("k",), (A,), Position(2, 0), 2.0, 3.0, Position(3, 2))
REFUSED = Attempt(("l",), (B,), NOTHING, 2.0, 3.0, None, Position(2, 1))


def test_a_history_that_is_right() -> None:
    History([FIRST, SECOND, REFUSED]).check(LOG)
    unanswered = Attempt(("m",), None, NOTHING, 5.0)
    History([FIRST, SECOND, unanswered]).check(LOG)
    History([FIRST, SECOND, unanswered]).check([*LOG, Stored(Position(4, 3), "m", {})])


@pytest.mark.parametrize(
    ("attempts", "log"),
    [
        pytest.param([FIRST, dataclasses.replace(SECOND, expected=NOTHING)], LOG, id="lost update"),
        pytest.param([FIRST, SECOND], LOG[:2], id="lost event"),
        pytest.param([FIRST], LOG, id="event of nobody"),
        pytest.param([FIRST, SECOND], [*LOG, Stored(Position(4, 3), "k", A)], id="stored twice"),
        pytest.param([FIRST, SECOND], [LOG[0], LOG[2], LOG[1]], id="order"),
        pytest.param([FIRST, SECOND], [LOG[0], Stored(Position(3, 1), "j", B), LOG[2]], id="call torn apart"),
        pytest.param([FIRST, dataclasses.replace(SECOND, position=Position(4, 2))], LOG, id="other position told"),
        pytest.param([FIRST, dataclasses.replace(REFUSED, ids=("k",))], LOG, id="refused and stored"),
        pytest.param([FIRST, SECOND, dataclasses.replace(REFUSED, conflict=NOTHING)], LOG, id="refused for nothing"),
        pytest.param([FIRST, SECOND, dataclasses.replace(REFUSED, conflict=Position(3, 2))], LOG, id="other conflict"),
        pytest.param([dataclasses.replace(FIRST, sent=4.0, answered=5.0), SECOND], LOG, id="real time"),
        pytest.param([Attempt(("i", "j"), None, NOTHING, 0.0), SECOND], LOG[1:], id="stored in part"),
    ],
)  # fmt: skip
def test_histories_that_are_wrong(attempts: list[Attempt], log: list[Stored]) -> None:
    with pytest.raises(AssertionError):
        History(attempts).check(log)


def test_reads_are_no_older_than_their_question() -> None:
    history = History([FIRST, SECOND])
    history.check_fresh(LOG, 0.5, NOTHING)
    history.check_fresh(LOG, 1.5, Position(2, 1))
    history.check_fresh(LOG, 1.5, Position(2, 0), [A])
    for sent, seen, criteria in ((1.5, Position(2, 0), ()), (3.5, Position(2, 0), [A]), (3.5, NOTHING, [B])):
        with pytest.raises(AssertionError):
            history.check_fresh(LOG, sent, seen, criteria)


def test_readers() -> None:
    checker.check_prefix(LOG, LOG[:2])
    checker.check_prefix(LOG, [LOG[0], LOG[2]], [A])
    checker.check_run(LOG, LOG[1:])
    checker.check_delivered(LOG, [LOG[2]], [A], after=Position(2, 0))
    checker.check_snapshot(LOG, [A, B], [Position(2, 0), Position(2, 1)], Position(2, 1))
    checker.check_snapshot(LOG, [A, {"c": "1"}], [Position(3, 2), None], Position(3, 2))
    for wrong in (
        lambda: checker.check_prefix(LOG, [LOG[0], LOG[2]]),
        lambda: checker.check_run(LOG, [LOG[0], LOG[2]]),
        lambda: checker.check_delivered(LOG, [*LOG, LOG[2]]),
        lambda: checker.check_delivered(LOG, LOG[:2]),
        lambda: checker.check_snapshot(LOG, [A, B], [Position(3, 2), None], Position(3, 2)),
        lambda: checker.check_snapshot(LOG, [A], [Position(2, 0)], NOTHING),
    ):
        with pytest.raises(AssertionError):
            wrong()
