"""Passwords at the door: checked, and wrong ones slowed down for whoever sends them.

A wrong password counts against the user name together with the address that it came from, and against the address
alone. It never counts against the user name alone, so nobody can lock a user out who signs in from elsewhere; nor from
the same address, as behind a proxy that hides addresses, where the user has signed in before and can show it: such a
place counts by itself (the "device cookies" of OWASP). What is refused here was not checked, and a caller that sends
what was found good before is not asked again (sessions.py).
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from ..core.users import User
from ..errors import ResourceExhausted
from .users import Users

#: Wrong passwords of one user name from one address before the first pause.
FREE = 10
#: Seconds of the first pause; each further wrong password doubles it, up to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
#: Wrong passwords of one address, whatever the user names: so many at once, and one more each so many seconds.
PEER_BURST, PEER_REFILL = 200.0, 0.1
#: Seconds without a wrong password after which all is forgiven.
_FORGIVEN = 900.0
_MOST = 20_000
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
        self._failures: OrderedDict[tuple[str, str], tuple[int, float, float]] = OrderedDict()
        # address -> tokens left, time of that number
        self._budgets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def verify(self, username: str, password: str, peer: str, place: str = "") -> User | None:
        """The user with that name and password, else None. ``peer`` is an IP address, "" for callers without one.

        ``place`` names whoever shows that this user has signed in there before; it counts in the address's stead.
        Raises TooManyFailures without having checked, or ResourceExhausted when the server is busy with passwords.
        """
        key = (username[:255], f"place {place}" if place else network_of(peer))
        self._check(key)
        # counted before it is checked: of many at once no more than the free ones are
        self._count(key)
        user = await self._users.verify(username, password)
        if user is not None:
            self._forgive(key)
            return user
        self._on_failure(username if self._users.named(username) else "", peer)
        return None

    def _check(self, key: tuple[str, str]) -> None:
        now = self._clock()
        _, last, until = self._failures.get(key, (0, now, 0.0))
        if now - last > _FORGIVEN:
            self._failures.pop(key, None)
        elif now < until:
            raise TooManyFailures(until - now)
        if self._budget(key[1], now) < 1:
            raise TooManyFailures(PEER_REFILL)

    def _count(self, key: tuple[str, str]) -> None:
        now = self._clock()
        count = self._failures.get(key, (0, now, 0.0))[0] + 1
        pause = min(FIRST_PAUSE * 2 ** min(count - FREE, 30), LONGEST_PAUSE) if count >= FREE else 0.0
        _keep(self._failures, key, (count, now, now + pause))
        _keep(self._budgets, key[1], (self._budget(key[1], now) - 1, now))

    def _forgive(self, key: tuple[str, str]) -> None:
        self._failures.pop(key, None)
        now = self._clock()
        _keep(self._budgets, key[1], (min(PEER_BURST, self._budget(key[1], now) + 1), now))

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
