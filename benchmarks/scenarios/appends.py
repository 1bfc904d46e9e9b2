"""Single appends: a lone one, many callers, a burst, many boundaries, one context that all want."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter

import grpc

from ..bench import OverTheWire
from ..client import Client
from ..measure import interleaved, median
from ..parts import BACKLOG, SCHEMA, SMALL
from ..results import at_least, at_most

_ONE, _ONE_CHECKED, _CONTENDED = "s1_single_seq", "s1c_single_seq_criteria", "s4_contended_50"
_CALLERS = (50, 200, 1000)


async def lone(bench: OverTheWire) -> None:
    """A lone append beside a lone commit and an empty call."""
    inserts = bench.inserts(BACKLOG)

    async def append() -> float:
        return (await bench.generate("s1"))[_ONE].p50

    async def call() -> float:
        return (await bench.generate("s1", address=bench.floor))[_ONE].p50

    async def commit() -> float:
        return (await inserts.run(1)).timings.p50

    measured, called, committed = map(median, await interleaved(bench.sizes.rounds, append, call, commit))
    note = f"commit {committed:.2f} ms + call {called:.2f} ms"
    bench.add("lone", "1 caller", measured, "ms", floor=committed + called, bar=at_most(1.5), note=note)


async def callers(bench: OverTheWire) -> None:
    """Appends of 1, 50, 200 and 1000 callers, each on a context of its own."""
    inserts = bench.inserts(SMALL)
    scenarios = {1: _ONE_CHECKED} | {count: f"s2_single_conc_{count}" for count in _CALLERS}
    memory: dict[int, float | None] = {}
    errors: Counter[int] = Counter()

    async def appends() -> dict[int, float]:
        figures = await bench.generate("s1,s1c,s2")
        for count, scenario in scenarios.items():
            memory[count] = figures[scenario].memory
            errors[count] += figures[scenario].errors
        return {count: figures[scenario].ops_per_s for count, scenario in scenarios.items()} | {
            0: figures[_ONE].ops_per_s
        }

    async def floor() -> dict[int, float]:
        return {count: (await inserts.run(count)).rows_per_s for count in scenarios}

    measured, floors = await interleaved(bench.sizes.rounds, appends, floor)
    for count in scenarios:
        bench.add(
            "callers",
            f"{count} caller{'s' * (count > 1)}",
            median([one[count] for one in measured]),
            "appends/s",
            floor=median([one[count] for one in floors]),
            memory=memory[count],
            errors=errors[count],
        )
    for count, what in ((1, "200 callers to one"), (0, "200 callers to one that checks no context")):
        bench.add(
            "callers",
            what,
            median([one[200] for one in measured]),
            "appends/s",
            floor=median([one[count] for one in measured]),
            ratio=median([one[200] / one[count] for one in measured]),
            bar=at_least(8),
            memory=memory[200],
            errors=errors[200],
        )


async def burst(bench: OverTheWire) -> None:
    """All callers at once: every append is taken."""
    count, name = bench.sizes.burst, f"bench_burst_{secrets.token_hex(4)}"

    async def at_once(address: str) -> tuple[float, Counter[str]]:
        async with contextlib.AsyncExitStack() as stack:
            client = Client(address, 8)
            stack.push_async_callback(client.close)
            await client.connect()
            if address == bench.store.address:
                await client.create_boundary(name, SCHEMA)
                await client.create_index(name)
            new = [client.event(f"b{number}") for number in range(count)]
            refused: Counter[str] = Counter()

            async def append(number: int) -> None:
                try:
                    await client.save(name, [new[number]], key=f"b{number}")
                except grpc.aio.AioRpcError as error:
                    refused[error.code().name] += 1

            began = time.perf_counter()
            await asyncio.gather(*map(append, range(count)))
            return time.perf_counter() - began, refused

    floor, _ = await at_once(bench.floor)
    seconds, refused = await at_once(bench.store.address)
    note = ", ".join(f"{number} {code}" for code, number in refused.items())
    bench.add("burst", f"{count:,} at once", count / seconds, "appends/s", floor=count / floor)
    refusals = sum(refused.values())
    bench.add("burst", f"refused of {count:,}", refusals, "calls", bar=at_most(0), note=note)


async def boundaries(bench: OverTheWire) -> None:
    """A caller on each of many boundaries beside one caller on one."""
    names = [f"bench_side_{number}_{secrets.token_hex(4)}" for number in range(bench.sizes.boundaries)]
    async with bench.store.client() as client:
        for name in names:
            await client.create_boundary(name, SCHEMA)
    inserts = bench.inserts(BACKLOG)

    async def one() -> float:
        return await together(bench, names[:1])

    async def all_of_them() -> float:
        return await together(bench, names)

    async def floor() -> float:
        return (await inserts.run(1, len(names))).rows_per_s

    singles, sums, floors = await interleaved(bench.sizes.rounds, one, all_of_them, floor)
    what = f"{len(names)} boundaries"
    bench.add("boundaries", what, median(sums), "appends/s", floor=median(floors))
    ratio = median([many / single for many, single in zip(sums, singles, strict=True)])
    bench.add(
        "boundaries",
        f"{what} to one",
        median(sums),
        "appends/s",
        floor=median(singles),
        ratio=ratio,
        bar=at_least(len(names) / 4),
    )


async def together(bench: OverTheWire, names: list[str]) -> float:
    """Appends by second of as many lone callers as there are names, each a process, on these boundaries."""
    runs = await asyncio.gather(*(bench.generate("s1", boundary=name) for name in names))
    return sum(figures[_ONE].ops_per_s for figures in runs)


async def contended(bench: OverTheWire) -> None:
    """Fifty callers on one context beside a lone caller."""
    attempts: list[float] = []

    async def fight() -> float:
        figures = (await bench.generate("s4"))[_CONTENDED]
        attempts.append(figures.extra.get("attempts_per_success", 0.0))
        return figures.ops_per_s

    async def alone() -> float:
        return (await bench.generate("s1"))[_ONE].ops_per_s

    fights, singles = await interleaved(bench.sizes.rounds, fight, alone)
    note = f"{median(attempts):.1f} attempts for each success"
    bench.add(
        "contended", "50 callers", median(fights), "appends/s", floor=median(singles), bar=at_least(0.1), note=note
    )
