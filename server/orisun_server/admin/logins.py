"""Passwords at the door: checked, and wrong ones slowed down for whoever sends them.

A wrong password counts against the user name together with the address that it came from, and against the address
alone. It never counts against the user name alone, so nobody can lock a user out who signs in from elsewhere; nor from
the same address, as behind a proxy that hides addresses, where the user has signed in before and can show it: such a
place counts by itself (the "device cookies" of OWASP). What is refused here was not checked, and a caller that sends
what was found good before is not asked again (sessions.py).

Only what was found wrong counts. Of many at once a few are checked and the others wait their turn, so that no more can
be wrong than are free, and right ones are not refused for being many.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from ..core.users import User
from ..errors import ResourceExhausted
from .passwords import BUSY
from .users import Users

#: Wrong passwords of one user name from one address before the first pause.
FREE = 10
#: Seconds of the first pause; each further wrong password doubles it, up to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
#: Wrong passwords of one address, whatever the user names: so many at once, and one more each so many seconds.
PEER_BURST, PEER_REFILL = 200.0, 0.1
#: Passwords of one user name from one address that are checked at a time, and that wait for it.
AT_ONCE, MOST_WAITING = 4, 128
#: Seconds without a wrong password after which all is forgiven.
_FORGIVEN = 900.0
_MOST = 20_000
_Key = tuple[str, str]
_K = TypeVar("_K")
_V = TypeVar("_V")


class TooManyFailures(ResourceExhausted):
    """Too many wrong passwords came from this address."""

    reason = "TOO_MANY_FAILED_LOGINS"

    def __init__(self, seconds: float) -> None:
        self.seconds = math.ceil(seconds)
        super().__init__(f"too many failed logins from this address; try again in {self.seconds} s")

    @property
    def info(self) -> dict[str, str]:
        return {"retry_after_seconds": str(self.seconds)}


class _Line:
    """Those of one key that are being checked, and those that wait."""

    def __init__(self) -> None:
        self.checked = self.waiting = 0
        #: Set when one of them has been checked; then there is another one.
        self.moved = asyncio.Event()


class Logins:
    """Checks passwords for callers from anywhere."""

    def __init__(
        self,
        users: Users,
        *,
        on_failure: Callable[[str, str], None] = lambda username, peer: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``on_failure(username, peer)`` is called after each wrong password; the user name is "" where nobody has
        it."""
        self._users, self._on_failure, self._clock = users, on_failure, clock
        # (user name, address) -> failures, time of the last, time until which it must wait
        self._failures: OrderedDict[_Key, tuple[int, float, float]] = OrderedDict()
        # address -> tokens left, time of that number
        self._budgets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lines: dict[_Key, _Line] = {}

    async def verify(self, username: str, password: str, peer: str, place: str = "") -> User | None:
        """The user with that name and password, else None. ``peer`` is an IP address, "" for callers without one.

        ``place`` names whoever shows that this user has signed in there before; it counts in the address's stead.
        Raises TooManyFailures without having checked, or ResourceExhausted when the server is busy with passwords.
        """
        key = (username[:255], f"place {place}" if place else network_of(peer))
        async with self._turn(key, lambda: self._free(key)):
            self._spend(key[1], 1)
            is_wrong = False
            try:
                user = await self._users.verify(username, password)
                is_wrong = user is None
            finally:
                if not is_wrong:
                    self._spend(key[1], -1)
            if user is not None:
                self._failures.pop(key, None)
                return user
            self._count(key)
        self._failed(username, peer)
        return None

    async def check(self, username: str, password: str, peer: str) -> User | None:
        """The same for an ADMIN at ``peer`` who asks about somebody (ValidateCredentials): a wrong password is an
        answer, and delays no other one. Raises ResourceExhausted when the server is busy with passwords."""
        async with self._turn((username[:255], f"asked by {network_of(peer)}"), lambda: AT_ONCE):
            user = await self._users.verify(username, password)
        if user is None:
            self._failed(username, peer)
        return user

    def _failed(self, username: str, peer: str) -> None:
        self._on_failure(username if self._users.named(username) else "", peer)

    @contextlib.asynccontextmanager
    async def _turn(self, key: _Key, room: Callable[[], int]) -> AsyncIterator[None]:
        """Waits until fewer than ``room()``, and than AT_ONCE, of the key are being checked; what it raises ends the
        wait."""
        line = self._lines.setdefault(key, _Line())
        if line.waiting >= MOST_WAITING:
            raise ResourceExhausted(BUSY)
        line.waiting += 1
        try:
            while line.checked >= min(AT_ONCE, room()):
                await line.moved.wait()
            line.checked += 1
        finally:
            line.waiting -= 1
            self._forget(key, line)
        try:
            yield
        finally:
            line.checked -= 1
            self._forget(key, line)
            line.moved.set()
            line.moved = asyncio.Event()

    def _forget(self, key: _Key, line: _Line) -> None:
        if not line.checked and not line.waiting:
            del self._lines[key]

    def _free(self, key: _Key) -> int:
        """How many may be checked at a time without more being wrong than may be. Raises TooManyFailures."""
        now = self._clock()
        failures, last, until = self._failures.get(key, (0, now, 0.0))
        if now - last > _FORGIVEN:
            self._failures.pop(key, None)
            failures = 0
        elif now < until:
            raise TooManyFailures(until - now)
        if self._budget(key[1], now) < 1:
            raise TooManyFailures(PEER_REFILL)
        return max(1, FREE - failures)

    def _count(self, key: _Key) -> None:
        now = self._clock()
        count = self._failures.get(key, (0, now, 0.0))[0] + 1
        pause = min(FIRST_PAUSE * 2 ** min(count - FREE, 30), LONGEST_PAUSE) if count >= FREE else 0.0
        _keep(self._failures, key, (count, now, now + pause))

    def _spend(self, network: str, number: int) -> None:
        now = self._clock()
        _keep(self._budgets, network, (min(PEER_BURST, self._budget(network, now) - number), now))

    def _budget(self, network: str, now: float) -> float:
        left, at = self._budgets.get(network, (PEER_BURST, now))
        return min(PEER_BURST, left + (now - at) / PEER_REFILL)


def network_of(peer: str) -> str:
    """The address, or the /64 of an IPv6 one: whoever has one has them all."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _keep(kept: OrderedDict[_K, _V], key: _K, value: _V) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > _MOST:
        kept.popitem(last=False)
