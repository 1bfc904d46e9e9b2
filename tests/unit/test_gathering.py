"""Half of the callers are waited for, and a lone one never."""

from __future__ import annotations

import asyncio

import pytest

from orisun_server.storage import gathering
from orisun_server.storage.gathering import Gathering


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for a moment while callers are counted."""
    monkeypatch.setattr(gathering, "_COUNT_SECONDS", 5.0)


class Lane:
    """A queue that callers join one at a turn of the loop."""

    def __init__(self) -> None:
        self.gathering = Gathering()
        self.queue: list[int] = []

    async def callers(self, count: int) -> None:
        for number in range(count):
            await asyncio.sleep(0)
            self.queue.append(number)
            self.gathering.came(len(self.queue))

    async def flush(self, count: int, most: int | None = None) -> int:
        """The size of the group when so many callers come after a first one."""
        self.queue = [0]
        coming = asyncio.create_task(self.callers(count))
        await self.gathering.wait(self.queue, 1.0, most)
        size = len(self.queue)
        await coming
        return size


async def test_all_are_counted_once_and_then_half_is_waited_for() -> None:
    lane = Lane()
    assert await lane.flush(11) == 12
    assert lane.gathering.callers == 12
    assert await lane.flush(11) in (6, 7)
    assert lane.gathering.callers == 12


async def test_no_more_are_waited_for_than_a_group_can_hold() -> None:
    """Calls of a thousand events each fill one by fives."""
    lane = Lane()
    assert await lane.flush(39) == 40
    assert await lane.flush(39, 5) in (5, 6)
    assert lane.gathering.callers == 40
    assert await lane.flush(39) in (20, 21)


async def test_who_joins_is_counted_some_time_later(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane()
    assert await lane.flush(3) == 4
    monkeypatch.setattr(lane.gathering, "_count_at", 0.0)
    assert await lane.flush(29) == 30
    assert lane.gathering.callers == 30


async def test_there_is_a_limit_to_counting() -> None:
    lane = Lane()
    assert await lane.flush(500) in (gathering._COUNT_CALLS, gathering._COUNT_CALLS + 1)


async def test_who_left_is_forgotten_soon() -> None:
    lane = Lane()
    await lane.flush(63)
    for _ in range(20):
        await lane.flush(0)
    assert lane.gathering.callers // 2 <= 1


async def test_nobody_is_waited_for_while_nobody_waits() -> None:
    lane = Lane()
    await lane.flush(63)
    waiting = lane.gathering.wait([], 1.0)
    with pytest.raises(StopIteration):  # it did not even give up its turn
        waiting.send(None)


async def test_one_who_came_meanwhile_and_no_other_waits_once_and_not_again() -> None:
    lane = Lane()
    assert await lane.flush(0) == 1
    waiting = lane.gathering.wait([0], 1.0)
    with pytest.raises(StopIteration):
        waiting.send(None)
