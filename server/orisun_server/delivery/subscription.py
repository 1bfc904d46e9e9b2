"""Catch-up subscriptions: what is stored, then what comes, without a gap, a duplicate or a change of order.

A subscription attaches to the boundary's live tail first and reads PostgreSQL until past that point. Then it drains the
tail, skipping what it has delivered. Each live message carries the position of the event before it: one that the
subscription has not covered is a hole, and sends it back to PostgreSQL, as does an inbox that overflowed. While there
is no live tail, it polls. So NATS decides how soon an event is delivered, never whether.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine
from typing import Any, NamedTuple, TypeVar

from ..core.criteria import Query
from ..core.matching import Matcher
from ..core.position import NOTHING, Position, is_beginning
from ..errors import AlreadyExists, BoundaryNotActive, InvalidArgument, OutOfRange, Unavailable
from ..observation import Watch
from ..storage.catalog import Boundary
from ..storage.leases import Lease, Leases
from ..storage.reads import Reader, Scan
from .codec import encode_events
from .inbox import Inbox
from .live_tail import LiveTail, LiveTails
from .publisher import CONFIRMED
from .stream import message_id

T = TypeVar("T")

#: A page of events, and the bytes that it may hold; one is sent while the next is read, so a client that does not read
#: costs two of them.
PAGE_EVENTS = 1_000
PAGE_BYTES = 1024 * 1024
#: Events that are handed on at once; between two such lots it is seen whether the subscription may go on.
_FEW = 50

_FIRST_POLL, _LONGEST_POLL = 0.05, 1.0
_LONGEST_NAME = 255

#: Seconds that a name gets to become free, and between two looks; a refusal has to come within one second.
_PATIENCE, _AGAIN = 0.5, 0.05


class Connected(NamedTuple):
    """A subscription that is open on this server."""

    boundary: str
    name: str
    #: Up to here every match has been handed to the client.
    position: Position
    #: What it asks for; () is the whole boundary.
    query: Query
    #: Seconds since 1970.
    since: float
    #: Whether it is fed by the live tail now, not from PostgreSQL.
    live: bool


class Subscriptions:
    """Opens subscriptions, one at a time for each name of a boundary, over all servers."""

    def __init__(self, leases: Leases, reader: Reader, tails: LiveTails, watch: Watch | None = None) -> None:
        self._leases, self._reader, self._tails = leases, reader, tails
        self._watch = watch or Watch()
        self._open: dict[_Subscription, tuple[str, float]] = {}
        self._inboxes: dict[Inbox, str] = {}
        self._releases: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def subscribe(
        self, boundary: Boundary, query: Query, after: Position | None, name: str
    ) -> AsyncGenerator[list[bytes]]:
        """Serialized ``orisun.Event`` messages after a position (exclusive; None is the beginning), a few at a time,
        without end.

        Close the generator (``contextlib.aclosing``) to free the name at once. Raises InvalidArgument (the name),
        AlreadyExists (the name is in use), OutOfRange (the position lies beyond the head) and, as the end of a stream
        that was, Unavailable (the server stops, or lost its hold on the name).
        """
        _check_name(name)
        if self._stopping:
            raise Unavailable("the server is shutting down; subscribe to another one")
        lease = await self._hold(boundary, name)
        if lease is None:
            raise AlreadyExists(f'subscriber "{name}" of boundary "{boundary.name}" is connected already')
        inbox = Inbox()
        self._inboxes[inbox] = boundary.name
        watch = asyncio.create_task(_watch(lease, inbox), name="subscription-lease")
        tail = self._tails.attach(boundary, inbox)
        subscription = _Subscription(boundary, query, after, reader=self._reader, tail=tail, inbox=inbox)
        self._open[subscription] = (name, time.time())
        counts = self._watch.metrics.boundaries[boundary.name]
        try:
            async with contextlib.aclosing(subscription.pages()) as pages:
                async for page in pages:
                    counts.delivered += len(page)
                    for first in range(0, len(page), _FEW):
                        inbox.check()
                        yield page[first : first + _FEW]
        finally:
            self._inboxes.pop(inbox, None)
            del self._open[subscription]
            self._tails.detach(tail, inbox)
            watch.cancel()
            # a cancelled call frees the name too
            release = asyncio.create_task(lease.release(), name="subscription-release")
            self._releases.add(release)
            release.add_done_callback(self._releases.discard)
            await asyncio.shield(release)

    async def _hold(self, boundary: Boundary, name: str) -> Lease | None:
        """The name, if it is free or about to be: who cancels and subscribes again at once may arrive first."""
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        while (lease := await self._leases.acquire("subscriber", boundary.name, name)) is None:
            if asyncio.get_running_loop().time() >= deadline:
                return None
            await asyncio.sleep(_AGAIN)
        return lease

    def connected(self) -> list[Connected]:
        """The subscriptions of this server, by boundary and name."""
        return sorted(subscription.connected(*told) for subscription, told in self._open.items())

    def wake(self, boundary: str | None) -> None:
        """There are new events; subscriptions that poll for want of a live tail look now. None: in any boundary."""
        for tail in self._tails.of(boundary):
            if not tail.live:
                for inbox in tail.inboxes:
                    inbox.poke()

    def keep(self, active: Collection[str]) -> None:
        """Ends the subscriptions of all boundaries but these with BoundaryNotActive."""
        for inbox, boundary in self._inboxes.items():
            if boundary not in active:
                inbox.fail(BoundaryNotActive(boundary))

    async def stop(self) -> None:
        """Ends all subscriptions with Unavailable."""
        self._stopping = True
        for inbox in self._inboxes:
            inbox.fail(Unavailable("the server is shutting down; subscribe again to go on"))
        if self._releases:
            await asyncio.wait(self._releases)


class _Subscription:
    """The course of one subscription; ``covered`` is how far every match has been handed out."""

    def __init__(
        self,
        boundary: Boundary,
        query: Query,
        after: Position | None,
        *,
        reader: Reader,
        tail: LiveTail,
        inbox: Inbox,
    ) -> None:
        self._boundary, self._query, self._reader = boundary, query, reader
        self._tail, self._inbox = tail, inbox
        self._matcher = Matcher(query)
        self._covered = NOTHING if after is None or is_beginning(after) else after
        #: Position and message id of the last event that was seen, and when PostgreSQL was last asked for it.
        self._seen: tuple[Position, str] | None = None
        self._confirmed_at = 0.0
        self._ahead: asyncio.Task[Scan] | None = None

    def connected(self, name: str, since: float) -> Connected:
        """What there is to tell of it."""
        live = self._tail.live and self._inbox.intact
        return Connected(self._boundary.name, name, self._covered, self._query, since, live)

    async def pages(self) -> AsyncGenerator[list[bytes]]:
        """The events to deliver, in order, in pages of any size."""
        inbox, tail = self._inbox, self._tail
        # Far from the head the inbox would only overflow; it opens when one reading has reached the head.
        near = False
        poll = _FIRST_POLL
        try:
            while True:
                if near:
                    inbox.open()
                else:
                    await self._check_history()
                live = near and tail.live
                at_head = False
                while not at_head:
                    page, at_head = await self._stored()
                    if page:
                        poll = _FIRST_POLL
                        yield page
                if not near:
                    near = True
                elif not live:
                    poll = _FIRST_POLL if await inbox.wait(poll) else min(poll * 2, _LONGEST_POLL)
                else:
                    while inbox.intact:
                        page, at_head = self._received()
                        if page:
                            yield page
                        elif at_head and await inbox.wait():
                            at_head = False
                        while not at_head:
                            page, at_head = await self._stored()
                            if page:
                                yield page
                    near = False
                inbox.check()
        finally:
            if self._ahead is not None:
                self._ahead.cancel()

    async def _check_history(self) -> None:
        """PostgreSQL may have been replaced by an earlier state, or by a copy that lacked the latest events."""
        self._confirmed_at = time.monotonic()
        covered = self._covered
        position, key = self._seen or (self._covered, "")
        event_id, head = await self._unless_ended(self._patiently(lambda: self._reader.look(self._boundary, position)))
        known = message_id(position.prepare, event_id) if event_id is not None else None
        if covered > head or (key and known != key):
            raise OutOfRange(
                f"position ({covered.commit}, {covered.prepare}) lies beyond the head ({head.commit}, {head.prepare})"
                f' of boundary "{self._boundary.name}", or did when it was read; it is of another history'
            )

    async def _stored(self) -> tuple[list[bytes], bool]:
        """The next page that PostgreSQL holds, and whether it reaches the head; the one after it is read meanwhile."""
        if time.monotonic() > self._confirmed_at + CONFIRMED:
            await self._check_history()
        ahead, self._ahead = self._ahead, None
        scan = await self._unless_ended(ahead or self._scan(self._covered))
        if not scan.at_head:
            self._ahead = asyncio.create_task(self._scan(scan.covered), name="subscription-read-ahead")
        self._covered = max(self._covered, scan.covered)
        if scan.events:
            last = scan.events[-1]
            self._seen = last.position, message_id(last.prepare, last.event_id)
        return list(encode_events(scan.events)), scan.at_head

    def _received(self) -> tuple[list[bytes], bool]:
        """What the tail has brought and fits, and False when PostgreSQL has to be asked for what comes next."""
        page: list[bytes] = []
        matcher, take = self._matcher, self._inbox.take
        while len(page) < PAGE_EVENTS and (message := take()) is not None:
            if message.position <= self._covered:
                continue
            if message.previous > self._covered or message.body is None:
                return page, False
            self._covered = message.position
            self._seen = message.position, message.key
            if matcher.whole_boundary or matcher.matches_values(*message.content()):
                page.append(message.body)
        return page, True

    async def _scan(self, after: Position) -> Scan:
        return await self._patiently(
            lambda: self._reader.scan(self._boundary, self._query, after, PAGE_EVENTS, PAGE_BYTES)
        )

    @staticmethod
    async def _patiently(read: Callable[[], Awaitable[T]]) -> T:
        """Tries again while PostgreSQL is away; the lease ends the subscription if that takes too long."""
        pause = _FIRST_POLL
        while True:
            try:
                return await read()
            except Unavailable:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_POLL)

    async def _unless_ended(self, reading: Coroutine[Any, Any, T] | asyncio.Task[T]) -> T:
        """The result, or what ends the subscription if that comes first."""
        task = asyncio.ensure_future(reading)
        try:
            await asyncio.wait((task, self._inbox.ended), return_when=asyncio.FIRST_COMPLETED)
            self._inbox.check()
            return task.result()
        finally:
            task.cancel()


async def _watch(lease: Lease, inbox: Inbox) -> None:
    await lease.lost.wait()
    inbox.fail(Unavailable("the subscription lost its hold on its name; subscribe again to go on"))


def _check_name(name: str) -> None:
    if not name:
        raise InvalidArgument("subscriber_name is required")
    if len(name) > _LONGEST_NAME or "\0" in name:
        raise InvalidArgument(f"invalid subscriber_name: at most {_LONGEST_NAME} characters, and no NUL")
