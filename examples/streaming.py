"""Streaming: three ways to go through many events without holding them, and one to follow what comes."""

from __future__ import annotations

import asyncio
import tracemalloc

from examples.support import place, run
from orisun import NewEvent, Projector, where

READINGS, SENSORS = 4_000, 8


async def main() -> None:
    async with place("sensors") as here:
        for first in range(0, READINGS, 1_000):
            await here.events.append(
                [
                    NewEvent("Measured", {"sensor": f"s{n % SENSORS}", "value": n % 100})
                    for n in range(first, first + 1_000)
                ]
            )

        # row by row: only a page is held, whatever the number of events
        tracemalloc.start()
        count = 0
        async for _ in here.events.read(page_size=200):
            count += 1
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        print(f"read {count} events, row by row, with {peak / 1024:.0f} KiB at most")

        # a projection in passing: several states in one read
        highest = Projector("highest", where("Measured"), 0, lambda so_far, event: max(so_far, event.data["value"]))
        of_one = Projector("of s1", where("Measured", sensor="s1"), 0, lambda number, _: number + 1)
        decision = await here.events.decide(highest, of_one)
        print(f"highest value {decision[highest]}, {decision[of_one]} readings of s1, all as of {decision.position}")

        # backwards, and only as far as needed
        last = [event.data["value"] async for event in here.events.read(where(sensor="s7"), descending=True, limit=3)]
        print("last three readings of s7:", last)

        # what is stored, then what comes, as one stream without a gap
        async with here.events.subscribe("dashboard", where("Measured", sensor="s1")) as subscription:
            appending = asyncio.create_task(here.events.append([NewEvent("Measured", {"sensor": "s1", "value": -1})]))
            seen = 0
            async for event in subscription:
                seen += 1
                if event.data["value"] == -1:
                    break
            await appending
        print(f"followed s1: {seen} events, the last one live")


if __name__ == "__main__":
    run(main)
