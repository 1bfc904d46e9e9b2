"""What a large log, and a key with many events, cost beside a small log and a key with one event."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import Protocol

from orisun_server.core.append import Context
from orisun_server.core.criteria import Tag
from orisun_server.core.event import NewEvent
from orisun_server.core.position import Position
from orisun_server.storage.catalog import Boundary

from .. import events
from ..bench import InProcess, OverTheWire
from ..client import NOTHING, Client
from ..measure import paired
from ..parts import BIG, SMALL, Parts
from ..results import Bar, at_most

_LIMIT = 1.3
_KEY = "k5"
_Operation = Callable[[], Awaitable[object]]


class Log(Protocol):
    """A boundary, reached in process or over the wire; what is appended carries keys that nobody asks for."""

    async def append(self) -> None:
        """Without a context."""

    async def append_new(self) -> None:
        """On condition that its own key has no event yet."""

    async def appending(self, key: str) -> _Operation:
        """An append on condition that the latest event of ``key`` is the one of now."""

    async def latest(self, key: str) -> None: ...

    async def page(self, key: str) -> None: ...


class _Stored:
    """Storage in this process."""

    def __init__(self, parts: Parts, boundary: Boundary) -> None:
        self._parts, self._boundary = parts, boundary
        self._ids, self._numbers = events.ids(), itertools.count()

    async def append(self) -> None:
        await self._append(None)

    async def append_new(self) -> None:
        await self._append(Context(Position(-1, -1), ((Tag(events.INDEX_KEY, f"g{next(self._numbers)}"),),)))

    async def appending(self, key: str) -> _Operation:
        query = ((Tag(events.INDEX_KEY, key),),)
        _, expected = await self._parts.reader.latest(self._boundary, query)
        return lambda: self._append(Context(expected, query))

    async def latest(self, key: str) -> None:
        await self._parts.reader.latest(self._boundary, ((Tag(events.INDEX_KEY, key),),))

    async def page(self, key: str) -> None:
        await self._parts.reader.page(self._boundary, ((Tag(events.INDEX_KEY, key),),), events.PER_KEY)

    async def _append(self, context: Context | None) -> None:
        event = NewEvent(next(self._ids), events.EVENT_TYPE, events.data("growth"), events.METADATA)
        await self._parts.appender.append(self._boundary, [event], context)


class _Remote:
    """A server."""

    def __init__(self, client: Client, boundary: str) -> None:
        self._client, self._boundary = client, boundary
        self._numbers = itertools.count()

    async def append(self) -> None:
        await self._client.save(self._boundary, [self._client.event("growth")])

    async def append_new(self) -> None:
        key = f"g{next(self._numbers)}"
        await self._client.save(self._boundary, [self._client.event("growth")], key=key, expected=NOTHING)

    async def appending(self, key: str) -> _Operation:
        expected = await self._client.latest(self._boundary, key)
        client = self._client
        return lambda: client.save(self._boundary, [client.event("growth")], key=key, expected=expected)

    async def latest(self, key: str) -> None:
        await self._client.latest(self._boundary, key)

    async def page(self, key: str) -> None:
        await self._client.page(self._boundary, key, events.PER_KEY)


async def in_process(bench: InProcess) -> None:
    """Storage alone."""
    small, big = (_Stored(bench.parts, bench.parts.boundary(name)) for name in (SMALL, BIG))
    await _compare(bench, small, big)


async def over_the_wire(bench: OverTheWire) -> None:
    """The whole server, asked by a client in Python."""
    async with bench.store.client() as client:
        await _compare(bench, _Remote(client, SMALL), _Remote(client, BIG))


async def _compare(bench: InProcess | OverTheWire, small: Log, big: Log) -> None:
    logs = f"{bench.sizes.big:,} events to {bench.sizes.small:,}"
    bar = at_most(_LIMIT)
    cases: list[tuple[str, _Operation, _Operation, Bar | None]] = [
        ("append", small.append, big.append, bar),
        ("append, context without an event", small.append_new, big.append_new, bar),
        ("append, context of 100 events", await small.appending(_KEY), await big.appending(_KEY), bar),
        ("latest of a key", lambda: small.latest(_KEY), lambda: big.latest(_KEY), bar),
        ("page of 100 events of a key", lambda: small.page(_KEY), lambda: big.page(_KEY), None),
    ]
    for what, at_small, at_big, judged in cases:
        await _pair(bench, "growth", f"{what}, {logs}", at_small, at_big, judged)

    one = f"{events.ONCE}0"
    matches = f"{bench.sizes.big // events.HOT_SHARE:,} matches to one"
    await _pair(
        bench,
        "matches",
        f"append, context of {matches}",
        await big.appending(one),
        await big.appending(events.HOT),
        bar,
    )
    await _pair(bench, "matches", f"latest, {matches}", lambda: big.latest(one), lambda: big.latest(events.HOT), bar)


async def _pair(
    bench: InProcess | OverTheWire, section: str, what: str, floor: _Operation, measured: _Operation, bar: Bar | None
) -> None:
    floors, timings = await paired(bench.sizes.pairs, floor, measured)
    bench.add(section, what, timings.p50, "ms", floor=floors.p50, bar=bar)
