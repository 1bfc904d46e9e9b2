"""Memory of a fresh server while a long log is appended and delivered."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator

from ..bench import OverTheWire
from ..client import Client
from ..measure import BenchError
from ..parts import SCHEMA
from ..results import at_most

_BATCH = 1_000
_CALLERS = 4
#: What has to fit: growth after the first tenth, and all of it.
_GROWTH, _HIGHEST = 50, 300


async def memory(bench: OverTheWire) -> None:
    """Batches from a few callers, and one subscriber that takes all of them."""
    count = bench.sizes.watched
    name = f"bench_memory_{secrets.token_hex(4)}"
    before = bench.store.memory
    samples: list[tuple[int, float]] = []
    async with bench.store.client(_CALLERS + 1) as client:
        await client.create_boundary(name, SCHEMA)
        delivered = 0

        async def watch() -> None:
            while True:
                samples.append((delivered, bench.store.memory))
                await asyncio.sleep(0.1)

        async def deliver() -> None:
            nonlocal delivered
            async for _ in _serialized(client, name):
                delivered += 1
                if delivered == count:
                    return

        began = time.perf_counter()
        watching, delivering = asyncio.create_task(watch()), asyncio.create_task(deliver())
        try:
            batches = iter(range(count // _BATCH))
            await asyncio.gather(*(_append(client, name, batches) for _ in range(_CALLERS)))
            async with asyncio.timeout(600):
                await delivering
        except TimeoutError:
            raise BenchError(f"{delivered} of {count} events were delivered") from None
        finally:
            for task in (watching, delivering):
                task.cancel()
            await asyncio.gather(watching, delivering, return_exceptions=True)
        seconds = time.perf_counter() - began
    first = next((used for done, used in samples if done >= count // 10), before)
    later = [used for done, used in samples if done >= count // 10]
    highest = max(used for _, used in samples)
    what = f"{count:,} appended and delivered"
    bench.add("memory", f"{what}, growth", max(later, default=first) - first, "MiB", bar=at_most(_GROWTH))
    bench.add("memory", f"{what}, highest", highest, "MiB", bar=at_most(_HIGHEST), note=f"{before:.0f} MiB before")
    bench.add("memory", f"{what}, rate", count / seconds, "events/s")


async def _append(client: Client, name: str, batches: Iterator[int]) -> None:
    for number in batches:
        await client.save(name, [client.event(f"m{number}_{event}") for event in range(_BATCH)])


async def _serialized(client: Client, name: str) -> AsyncIterator[bytes]:
    call = client.subscription(name, "memory")
    try:
        async for event in call:
            yield event
    finally:
        call.cancel()
