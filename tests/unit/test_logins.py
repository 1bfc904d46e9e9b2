"""Wrong passwords: how many are free, how long the pauses are, and whom they do not concern."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable
from typing import Any

import pytest

from orisun_server.admin.logins import (
    AT_ONCE,
    FREE,
    LONGEST_PAUSE,
    MOST_WAITING,
    PEER_BURST,
    Logins,
    TooManyFailures,
)
from orisun_server.core.users import User
from orisun_server.errors import ResourceExhausted

ANN: Any = object()


class KnownUsers:
    """Ann, whose password is "right"; counts what was checked, and how many at most at a time."""

    def __init__(self) -> None:
        self.checked = self.at_once = self.most_at_once = 0
        #: To be raised instead of an answer.
        self.busy: Exception | None = None

    def named(self, username: str) -> User | None:
        return ANN if username == "ann" else None

    async def verify(self, username: str, password: str) -> User | None:
        self.checked += 1
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            for _ in range(3):
                await asyncio.sleep(0)
        finally:
            self.at_once -= 1
        if self.busy is not None:
            raise self.busy
        return ANN if (username, password) == ("ann", "right") else None


class Door:
    """Logins with a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now, self.users, self.told = 0.0, KnownUsers(), list[tuple[str, str]]()
        users: Any = self.users
        self.logins = Logins(
            users, on_failure=lambda username, peer: self.told.append((username, peer)), clock=lambda: self.now
        )

    async def opens(
        self, password: str = "wrong", username: str = "ann", peer: str = "10.0.0.1", place: str = ""
    ) -> bool:
        return await self.logins.verify(username, password, peer, place) is not None

    async def asked(self, password: str = "wrong", username: str = "ann", peer: str = "10.0.0.1") -> bool:
        """By an ADMIN."""
        return await self.logins.check(username, password, peer) is not None

    async def pause(self, **where: str) -> int:
        """Seconds that the door says to wait."""
        with pytest.raises(TooManyFailures) as refused:
            await self.opens(**where)
        return refused.value.seconds


async def exhausted() -> Door:
    door = Door()
    for _ in range(FREE):
        assert not await door.opens()
    return door


async def test_pauses_double_and_nothing_is_checked_meanwhile() -> None:
    door = await exhausted()
    for seconds in (1, 2, 4, 8, 16, 32, LONGEST_PAUSE, LONGEST_PAUSE):
        checked = door.users.checked
        assert await door.pause() == seconds
        assert await door.pause(password="right") == seconds
        assert door.users.checked == checked
        door.now += seconds
        assert not await door.opens()
    assert door.told[0] == ("ann", "10.0.0.1")


async def test_the_user_is_not_locked_out_elsewhere() -> None:
    door = await exhausted()
    await door.pause(password="right")
    assert await door.opens("right", peer="10.0.0.2")
    assert await door.opens("right", peer="")
    assert not await door.opens(username="bob")


async def test_where_the_user_has_been_before_is_not_locked_by_the_same_address() -> None:
    door = await exhausted()
    assert await door.opens("right", place="browser")
    for number in range(int(PEER_BURST)):
        with contextlib.suppress(TooManyFailures):
            await door.opens(username=f"user{number}")
    await door.pause(username="another")
    assert await door.opens("right", place="browser")
    # it has its own bound
    for _ in range(FREE):
        assert not await door.opens(place="browser")
    await door.pause(password="right", place="browser")
    assert await door.opens("right", place="another browser")


async def test_a_right_password_forgives() -> None:
    door = Door()
    for _ in range(5):
        for _ in range(FREE - 1):
            assert not await door.opens()
        assert await door.opens("right")


async def test_time_forgives() -> None:
    door = await exhausted()
    await door.pause()
    door.now += 1000
    for _ in range(FREE):
        assert not await door.opens()
    await door.pause()


async def test_one_address_with_many_user_names() -> None:
    door = Door()
    for number in range(int(PEER_BURST)):
        assert not await door.opens(username=f"user{number}")
    await door.pause(username="another")
    assert await door.opens("right", peer="10.0.0.2")
    door.now += 1
    assert not await door.opens(username="another")


async def test_an_ipv6_network_is_one_address_and_so_is_a_mapped_one() -> None:
    door = Door()
    for number in range(FREE):
        assert not await door.opens(peer=f"2001:db8::{number + 1}")
    await door.pause(peer="2001:db8::ffff")
    assert not await door.opens(peer="2001:db8:0:1::1")
    for _ in range(FREE):
        assert not await door.opens(peer="::ffff:10.0.0.9")
    await door.pause(peer="10.0.0.9")


async def test_what_is_no_user_name_is_told_to_nobody() -> None:
    """People type passwords there."""
    door = Door()
    assert not await door.opens(username="my-s3cret")
    assert door.told == [("", "10.0.0.1")]


async def outcomes(calls: list[Awaitable[bool]]) -> Counter[object]:
    """How often True, False and each exception, of calls at the same time."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    return Counter(type(answer) if isinstance(answer, BaseException) else answer for answer in answers)


async def test_many_right_ones_at_once_wait_for_their_turn_and_none_is_refused() -> None:
    door = Door()
    # more in all than wrong ones of an address may be
    while door.users.checked < 2 * PEER_BURST:
        assert await outcomes([door.opens("right") for _ in range(MOST_WAITING)]) == {True: MOST_WAITING}
    assert door.users.most_at_once == AT_ONCE
    assert not door.told
    # one of them, wrong, is one failure
    assert await outcomes([door.opens("wrong"), *(door.opens("right") for _ in range(50))]) == {True: 50, False: 1}
    assert not door.logins._lines


async def test_of_many_wrong_ones_at_once_no_more_are_checked_than_are_free() -> None:
    door = Door()
    assert await outcomes([door.opens() for _ in range(100)]) == {False: FREE, TooManyFailures: 100 - FREE}
    assert door.users.checked == FREE
    door.now += 1
    # after a pause it is one
    assert await outcomes([door.opens() for _ in range(100)]) == {False: 1, TooManyFailures: 99}
    assert await outcomes([door.opens("right") for _ in range(10)]) == {TooManyFailures: 10}
    assert not door.logins._lines


async def test_many_user_names_at_once_from_one_address() -> None:
    door = Door()
    burst = int(PEER_BURST)
    calls = [door.opens(username=f"user{number}") for number in range(2 * burst)]
    assert await outcomes(calls) == {False: burst, TooManyFailures: burst}


async def test_what_was_not_checked_does_not_count() -> None:
    door = Door()
    door.users.busy = ResourceExhausted("busy")
    for _ in range(int(PEER_BURST) + 1):
        with pytest.raises(ResourceExhausted, match="busy"):
            await door.opens()
    for _ in range(FREE + 1):
        leaving = asyncio.create_task(door.opens())
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
    door.users.busy = None
    assert await door.opens("right")
    assert not door.logins._lines


async def test_who_leaves_the_line_holds_nobody_up() -> None:
    door = Door()
    line = [asyncio.create_task(door.opens("right")) for _ in range(20)]
    await asyncio.sleep(0)
    for task in line[::2]:
        task.cancel()
    await asyncio.wait(line)
    assert [task.cancelled() for task in line] == [True, False] * 10
    assert not door.logins._lines


async def test_an_admin_who_asks_is_answered_however_often_it_was_wrong() -> None:
    door = Door()
    for _ in range(3 * FREE):
        assert not await door.asked()
    assert await door.asked("right")
    assert await outcomes([door.asked() for _ in range(100)]) == {False: 100}
    assert await outcomes([door.asked("right") for _ in range(100)]) == {True: 100}
    assert door.users.most_at_once == AT_ONCE
    assert len(door.told) == 3 * FREE + 100
    # nor is who signs in at the same address held up, nor the other way round
    assert await door.opens("right")
    assert await door.asked("right", peer="10.0.0.2")
    tired = await exhausted()
    assert await tired.asked("right")
    assert not door.logins._lines


async def test_the_line_is_bounded() -> None:
    for call in (Door().opens, Door().asked):
        most = AT_ONCE + MOST_WAITING
        assert await outcomes([call("right") for _ in range(most + 5)]) == {True: most, ResourceExhausted: 5}
