"""Writers and a subscriber that go on while a test does its worst, and the checker at their end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from e2e.stores import Servers, show
from tests.faults.clients import Client, Follower, Load

BOUNDARY = "orders"
#: Seconds between looks at how many events were acknowledged.
_LOOK = 0.02


class Pauses:
    """The longest time without a call, in seconds, since it began or ``begin`` was called."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.last, self.longest = time.monotonic(), 0.0

    def __call__(self, *_: object) -> None:
        now = time.monotonic()
        self.longest, self.last = max(self.longest, now - self.last), now


@dataclass
class Traffic:
    """Writers and a subscriber on one boundary."""

    client: Client
    load: Load
    follower: Follower
    #: Between appends that were acknowledged, and between events that the subscriber got.
    appends: Pauses = field(default_factory=Pauses)
    live: Pauses = field(default_factory=Pauses)

    def begin(self) -> None:
        """The longest pauses are measured from now on."""
        self.appends.begin()
        self.live.begin()

    async def goes_on(self, timeout: float = 60) -> None:
        """New events are acknowledged, and new ones reach the subscriber."""
        await self.load.more(50, timeout)
        await self.follower.has(len(self.follower.events) + 50, timeout)

    def pauses(self) -> tuple[float, float]:
        """Seconds without appends, and without live events, at most."""
        return round(self.appends.longest, 1), round(self.live.longest, 1)

    async def watch(self) -> None:
        """Keeps ``appends``, until it is cancelled."""
        count = self.load.count
        while True:
            await asyncio.sleep(_LOOK)
            if self.load.count != count:
                count = self.load.count
                self.appends()


@contextlib.asynccontextmanager
async def traffic(servers: Servers, *pods: str) -> AsyncIterator[Traffic]:
    """By the Service, or by connections to these pods.

    At its end everything is checked: the log against what was acknowledged, the subscriber against the log.
    """
    async with servers.client(BOUNDARY, *pods) as client:
        head = await client.page(1, desc=True)
        live = Pauses()
        follower = Follower(client, after=head[0].position if head else None, on_event=live)
        async with follower:
            async with client.load(4, pause=0.02, timeout=15) as load:
                await load.more(50)
                running = Traffic(client, load, follower, live=live)
                watch = asyncio.create_task(running.watch())
                try:
                    yield running
                finally:
                    watch.cancel()
                await load.more(50)
            log = await client.log()
            log = [event for event in log if not head or event.position > head[0].position]
            client.history.check(log)
            await follower.has(len(log), timeout=60)
            seen = Counter(event.event_id for event in follower.events)
            assert [event.position for event in {e.event_id: e for e in follower.events}.values()] == [
                event.position for event in log
            ], "skipped, or out of order"
            show(
                "events, delivered twice, errors",
                (len(log), seen.total() - len(seen), {code.name: count for code, count in client.errors.items()}),
            )
