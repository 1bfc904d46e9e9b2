"""Many events in one append: all or none, in order, and a repetition that stores nothing twice."""

from __future__ import annotations

import time

from examples.support import place, run
from orisun import NOTHING, AppendCondition, Conflict, NewEvent, where


async def main() -> None:
    async with place("imports") as here:
        # all or none, only if this order is not there yet
        order = [
            NewEvent("OrderPlaced", {"order": "o-1"}),
            NewEvent("LineAdded", {"order": "o-1", "product": "lamp"}),
            NewEvent("LineAdded", {"order": "o-1", "product": "chair"}),
        ]
        new = AppendCondition(where(order="o-1"), NOTHING)
        first = await here.events.append(order, condition=new)
        print(f"{len(order)} events at {first}")

        # a timeout leaves it open whether an append was stored: repeat it with the same events
        print("repeated:", await here.events.append(order, condition=new) == first)
        try:
            await here.events.append([NewEvent("OrderPlaced", {"order": "o-1"})], condition=new)
        except Conflict:
            print("another order of that name is refused, and nothing of it is stored")

        # bulk: a thousand events a call
        began, total = time.perf_counter(), 10_000
        for start in range(0, total, 1_000):
            await here.events.append(
                [NewEvent("RowImported", {"row": row}, event_id=f"row-{row}") for row in range(start, start + 1_000)]
            )
        seconds = time.perf_counter() - began
        print(f"{total} events in {seconds:.2f} s, {total / seconds:,.0f} a second")


if __name__ == "__main__":
    run(main)
