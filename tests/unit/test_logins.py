"""Wrong passwords: how many are free, how long the pauses are, and whom they do not concern."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from orisun_server.admin.logins import FREE, LONGEST_PAUSE, PEER_BURST, Logins, TooManyFailures
from orisun_server.core.users import User

ANN: Any = object()


class KnownUsers:
    """Ann, whose password is "right"; counts what was checked."""

    def __init__(self) -> None:
        self.checked = 0

    def named(self, username: str) -> User | None:
        return ANN if username == "ann" else None

    async def verify(self, username: str, password: str) -> User | None:
        self.checked += 1
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
