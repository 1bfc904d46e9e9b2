"""Single appends: a lone one, many callers, a burst, many boundaries, one context that all want."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import Counter

import grpc

from ..bench import OverTheWire
from ..client import connected
from ..generator import Figures
from ..machine import busy_seconds
from ..measure import BenchError, interleaved, median
from ..parts import BACKLOG, SCHEMA, SMALL
from ..results import at_least, at_most

_ONE, _ONE_CHECKED, _CONTENDED = "s1_single_seq", "s1c_single_seq_criteria", "s4_contended_50"
_CALLERS = (50, 200, 1000)


async def lone(bench: OverTheWire) -> None:
    """A lone append beside a lone commit and an empty call."""
    inserts = bench.inserts(BACKLOG)
    errors: list[int] = []

    async def append() -> float:
        figures = (await bench.generate("s1"))[_ONE]
        errors.append(figures.errors)
        return figures.p50

    async def call() -> float:
        return (await bench.generate("s1", address=bench.floor))[_ONE].p50

    async def commit() -> float:
        return (await inserts.run(1)).timings.p50

    async def call_that_commits() -> float:
        await inserts.fresh_table()
        at = inserts.address
        async with bench.doing("insert", at.host, str(at.port), at.user, at.database) as address:
            return (await bench.generate("s1", address=address))[_ONE].p50

    measured, called, committed, at_once = map(
        median, await interleaved(bench.sizes.rounds, append, call, commit, call_that_commits)
    )
    floor, note = committed + called, f"commit {committed:.2f} ms + call {called:.2f} ms"
    failed = sum(errors)
    bench.add("lone", "1 caller", measured, "ms", floor=floor, bar=at_most(1.5), note=note, errors=failed)
    bench.add("lone", "a call that does the insert alone", at_once, "ms", floor=floor, memory=None)


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
    count = bench.sizes.burst
    inserts = bench.inserts(SMALL)
    refused: Counter[str] = Counter()

    async def store() -> float:
        name = f"bench_burst_{secrets.token_hex(4)}"
        async with bench.store.client() as client:
            await client.create_boundary(name, SCHEMA)
            await client.create_index(name)
        return await _at_once(bench.store.address, name, count, refused)

    async def transport() -> float:
        return await _at_once(bench.floor, "bench_burst", count, Counter())

    async def insert() -> float:
        return (await inserts.run(count)).rows_per_s

    rates, floors, rows = map(median, await interleaved(bench.sizes.rounds, store, transport, insert))
    note = ", ".join(f"{number} {code}" for code, number in refused.items())
    bench.add("burst", f"{count:,} at once", rates, "appends/s", floor=rows)
    bench.add("burst", f"{count:,} at once, to the same calls that do nothing", rates, "appends/s", floor=floors)
    refusals = sum(refused.values())
    bench.add("burst", f"refused of {bench.sizes.rounds} x {count:,}", refusals, "calls", bar=at_most(0), note=note)


async def _at_once(address: str, boundary: str, count: int, refused: Counter[str]) -> float:
    """Calls by second; what is refused is counted by status."""
    async with connected(address, 8) as client:
        new = [client.event(f"b{number}") for number in range(count)]

        async def append(number: int) -> None:
            try:
                await client.save(boundary, [new[number]], key=f"b{number}")
            except grpc.aio.AioRpcError as error:
                refused[error.code().name] += 1

        began = time.perf_counter()
        await asyncio.gather(*map(append, range(count)))
        return count / (time.perf_counter() - began)


async def boundaries(bench: OverTheWire) -> None:
    """A caller on each of many boundaries beside one caller on one.

    How far they can scale is what the processors have left beside one caller, so the sum is held against that too.
    """
    names = [f"bench_side_{number}_{secrets.token_hex(4)}" for number in range(bench.sizes.boundaries)]
    async with bench.store.client() as client:
        for name in names:
            await client.create_boundary(name, SCHEMA)
    inserts = bench.inserts(BACKLOG)
    costs: list[float] = []

    async def one() -> float:
        before = busy_seconds()
        (run,) = await _callers_of(bench, names[:1])
        costs.append((busy_seconds() - before) / run.ops)
        return run.ops_per_s

    async def all_of_them() -> float:
        return await together(bench, names)

    async def floor() -> float:
        return (await inserts.run(1, len(names))).rows_per_s

    singles, sums, floors = await interleaved(bench.sizes.rounds, one, all_of_them, floor)
    what = f"{len(names)} boundaries"
    bench.add("boundaries", what, median(sums), "appends/s", floor=median(floors))
    bench.add(
        "boundaries",
        f"{what} to one",
        median(sums),
        "appends/s",
        floor=median(singles),
        ratio=median([many / single for many, single in zip(sums, singles, strict=True)]),
        bar=at_least(len(names) / 4),
    )
    cost = median(costs)
    bench.add(
        "boundaries",
        f"{what} to what the processors have room for",
        median(sums),
        "appends/s",
        floor=(os.cpu_count() or 1) / cost,
        bar=at_least(0.8),
        note=f"an append of one caller costs {1000 * cost:.2f} ms of CPU",
    )


async def together(bench: OverTheWire, names: list[str]) -> float:
    """Appends by second of as many lone callers as there are names, each a process, on these boundaries."""
    return sum(run.ops_per_s for run in await _callers_of(bench, names))


async def _callers_of(bench: OverTheWire, names: list[str]) -> list[Figures]:
    runs = [run[_ONE] for run in await asyncio.gather(*(bench.generate("s1", boundary=name) for name in names))]
    if failed := next((run.first_error for run in runs if run.errors), None):
        raise BenchError(f"an append failed: {failed}")
    return runs


async def contended(bench: OverTheWire) -> None:
    """Fifty callers on one context beside a lone caller."""
    attempts: list[float] = []
    errors: list[int] = []

    async def fight() -> float:
        figures = (await bench.generate("s4"))[_CONTENDED]
        errors.append(figures.errors)
        attempts.append(figures.extra.get("attempts_per_success", 0.0))
        return figures.ops_per_s

    async def alone() -> float:
        return (await bench.generate("s1"))[_ONE].ops_per_s

    fights, singles = await interleaved(bench.sizes.rounds, fight, alone)
    note = f"{median(attempts):.1f} attempts for each success"
    bench.add(
        "contended",
        "50 callers",
        median(fights),
        "appends/s",
        floor=median(singles),
        bar=at_least(0.1),
        note=note,
        errors=sum(errors),
    )
