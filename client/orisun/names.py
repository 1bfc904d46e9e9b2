"""Names that stand for several servers, and what is told of them from look to look."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading

#: Looks without a change after which addresses that had taken turns are forgotten.
_QUIET = 10


def name_of(address: str) -> tuple[str, int] | None:
    """Host and port, where the host is a name whose addresses may change; None for addresses, and for what gRPC alone
    knows how to resolve."""
    plain = address.removeprefix("dns:///").removeprefix("dns:")
    host, _, port = plain.rpartition(":")
    if not port.isdigit() or not host or host == "localhost" or "/" in host or ":" in host:
        return None
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host, int(port)
    return None


async def resolved(name: tuple[str, int]) -> frozenset[str] | None:
    """The addresses that a name stands for now; None where that cannot be told."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[frozenset[str] | None] = loop.create_future()

    def work() -> None:
        try:
            given = frozenset(str(info[4][0]) for info in socket.getaddrinfo(*name, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError):
            given = None

        def tell() -> None:
            if not found.done():
                found.set_result(given)

        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell)

    # not by a thread of the loop's, for which the program would wait at its end: a name server may be silent for long
    threading.Thread(target=work, name="orisun-dns", daemon=True).start()
    return await found


class Answers:
    """What a name stood for at each look, and which servers were added.

    A name server with many addresses may tell a part of them at a time. Where some go and others come at one look they
    take turns, and one that comes back was not added; one that went alone and comes back was: its server was down.
    """

    def __init__(self) -> None:
        #: Addresses that were added, and are not made use of yet.
        self.added: frozenset[str] = frozenset()
        self._last: frozenset[str] | None = None
        self._turned_away: frozenset[str] = frozenset()
        self._quiet = 0

    def look(self, found: frozenset[str] | None) -> None:
        """Take in an answer; None where there was none."""
        if found is None:
            return
        last, self._last = found if self._last is None else self._last, found
        came, went = found - last, last - found
        self._quiet = 0 if came or went else self._quiet + 1
        if came and went:
            self._turned_away |= went
        elif self._quiet >= _QUIET:
            self._turned_away = frozenset()
        self.added = (self.added | came - self._turned_away) & found
