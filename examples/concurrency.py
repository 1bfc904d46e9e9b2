"""Ticket booking: everybody wants the same concert, and what that costs.

The same bookings are made by 1, 5, 20 and 50 buyers at once. A booking rests on how many seats are sold; of the buyers
who decide at the same time one succeeds and the others decide again, which is counted. Each booking carries the number
of seats sold, so that one look-up of the latest one tells it. Two shapes are compared: one context for the whole
concert, and one for each of ten blocks of seats, where buyers meet less often.
"""

from __future__ import annotations

import asyncio
import time

from examples.support import Place, place, run
from orisun import Conflict, NewEvent, RetryPolicy, where

BOOKINGS, SEATS = 120, 100
RETRY = RetryPolicy(attempts=10_000, first=0.001, longest=0.05)
COLUMNS = ("BUYERS", "BLOCKS", "BOOKED", "SOLD OUT", "ATTEMPTS EACH", "BOOKED/S", "P50 MS", "P99 MS")


async def book(here: Place, concert: str, block: str, seats: int) -> tuple[bool, int]:
    """Whether a seat was booked, and how many times that was decided."""
    attempts = 0
    while True:
        attempts += 1
        latest = await here.events.latest(where("SeatBooked", concert=concert, block=block))
        sold = latest.event.data["sold"] if latest.event else 0
        if sold == seats:
            return False, attempts
        booked = NewEvent("SeatBooked", {"concert": concert, "block": block, "sold": sold + 1})
        try:
            await here.events.append([booked], condition=latest.condition)
        except Conflict:  # somebody else has got the seat; RETRY never gives up here
            await asyncio.sleep(RETRY.pause(attempts))
        else:
            return True, attempts


async def sell(here: Place, buyers: int, blocks: int) -> None:
    concert = f"concert-{blocks}-{buyers}"
    booked = sold_out = attempts = 0
    latencies: list[float] = []
    waiting = iter(range(BOOKINGS))

    async def buyer() -> None:
        nonlocal booked, sold_out, attempts
        for number in waiting:
            began = time.perf_counter()
            is_booked, took = await book(here, concert, f"block-{number % blocks}", SEATS // blocks)
            latencies.append((time.perf_counter() - began) * 1000)
            attempts, booked, sold_out = attempts + took, booked + is_booked, sold_out + (not is_booked)

    began = time.perf_counter()
    await asyncio.gather(*(buyer() for _ in range(buyers)))
    seconds = time.perf_counter() - began
    latencies.sort()
    p50, p99 = latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)]
    figures = (buyers, blocks, booked, sold_out, f"{attempts / BOOKINGS:.2f}", f"{booked / seconds:,.0f}")
    print("".join(f"{figure:>15}" for figure in (*figures, f"{p50:.1f}", f"{p99:.1f}")))
    if booked != SEATS:
        raise AssertionError(f"{booked} seats were sold of {SEATS}")


async def main() -> None:
    async with place("concerts") as here:
        await here.index("by_block", "concert", "block")
        print(f"{BOOKINGS} bookings for {SEATS} seats")
        print("".join(f"{column:>15}" for column in COLUMNS))
        for blocks in (1, 10):
            for buyers in (1, 5, 20, 50):
                await sell(here, buyers, blocks)
        print("no seat was sold twice: every count is exact")


if __name__ == "__main__":
    run(main)
