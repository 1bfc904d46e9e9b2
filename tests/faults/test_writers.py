"""32 writers on overlapping contexts and readers beside them, over the wire, on two servers of one store."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from orisun_server.core.position import NOTHING, Position
from orisun_server.settings import Settings
from tests.faults.checker import Stored, Tags, check_delivered, check_prefix, check_run, check_snapshot, matches
from tests.faults.clients import Client, Conflict, Follower, store

pytestmark = pytest.mark.fault

WRITERS, SUCCESSES = 32, 8


def context(chance: random.Random, x: str, y: str) -> list[Tags]:
    """One of the shapes that a context may have, matching an event with these values."""
    shapes: list[list[Tags]] = [[{"x": x}], [{"y": y}], [{"x": x, "y": y}], [{"x": x}, {"y": y}], []]
    return chance.choices(shapes, [3, 3, 4, 3, 1])[0]


async def write(client: Client, number: int) -> None:
    """Read the latest of a context, decide, append with that expected, and again after a conflict."""
    chance = random.Random(number)
    for _ in range(SUCCESSES):
        x, y = str(chance.randrange(4)), str(chance.randrange(4))
        tags = [{"x": x, "y": y, "by": str(number)} for _ in range(chance.choice((1, 1, 3)))]
        if chance.random() < 0.1:
            await client.save(*tags, first=number, twice=True)  # without a context
            continue
        criteria = context(chance, x, y)
        while True:
            if criteria:
                _, expected = await client.latest(criteria, first=number)
            else:
                last = await client.page(1, desc=True, first=number)
                expected = last[0].position if last else NOTHING
            try:
                twice = chance.random() < 0.2
                await client.save(*tags, criteria=criteria, expected=expected, first=number, twice=twice)
                break
            except Conflict:
                continue


class Readers:
    """What readers saw, to be held against the log at the end."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.going = True
        # each with the time at which it was asked for
        self.passes: list[tuple[float, list[Tags], list[Stored]]] = []
        self.tails: list[tuple[float, list[Stored]]] = []
        self.snapshots: list[tuple[float, list[Tags], list[Position | None], Position]] = []

    async def page(self, number: int, count: int, criteria: list[Tags]) -> None:
        while self.going:
            await asyncio.sleep(0.02)
            sent = time.monotonic()
            self.passes.append((sent, criteria, await self._client.pages(count, criteria=criteria, first=number)))

    async def tail(self, number: int) -> None:
        while self.going:
            await asyncio.sleep(0.02)
            sent = time.monotonic()
            self.tails.append((sent, (await self._client.page(40, desc=True, first=number))[::-1]))

    async def latest(self, number: int) -> None:
        criteria: list[Tags] = [{"x": "0"}, {"y": "1"}, {"x": "2", "y": "3"}, {"by": "5"}]
        while self.going:
            await asyncio.sleep(0.02)
            sent = time.monotonic()
            found, at = await self._client.latest(criteria, first=number)
            self.snapshots.append((sent, criteria, found, at))

    def check(self, log: list[Stored]) -> None:
        fresh = self._client.history.check_fresh
        for sent, criteria, seen in self.passes:
            check_prefix(log, seen, criteria)
            fresh(log, sent, seen[-1].position if seen else NOTHING, criteria)
        for sent, seen in self.tails:
            check_run(log, seen)
            fresh(log, sent, seen[-1].position if seen else NOTHING)
        for sent, criteria, found, at in self.snapshots:
            check_snapshot(log, criteria, found, at)
            fresh(log, sent, at, criteria)


async def test_overlapping_contexts(settings: Settings) -> None:
    wanted: list[Tags] = [{"x": "1"}, {"y": "2"}]
    async with (
        store(settings) as (client, _),
        Follower(client) as all_,
        Follower(client, first=1, criteria=wanted) as some,
    ):
        readers = Readers(client)
        reading = [
            asyncio.create_task(work)
            for work in (
                readers.page(0, 20, []),
                readers.page(1, 100, []),
                readers.page(1, 10, [{"x": "0"}]),
                readers.page(0, 10, [{"x": "0"}, {"y": "0"}]),
                readers.tail(0),
                *(readers.latest(number % 2) for number in range(6)),
            )
        ]
        await asyncio.gather(*(write(client, number) for number in range(WRITERS)))
        readers.going = False
        await asyncio.gather(*reading)
        log = await client.log()
        client.history.check(log)
        assert not client.errors
        assert len(client.history.acknowledged) == WRITERS * SUCCESSES
        assert client.history.conflicts > WRITERS, "the contexts hardly overlapped"
        readers.check(log)
        assert len(readers.passes) > 20
        assert len(readers.snapshots) > 20
        await all_.has(len(log))
        check_delivered(log, all_.events)
        await some.has(sum(matches(wanted, event.tags) for event in log))
        check_delivered(log, some.events, wanted)
