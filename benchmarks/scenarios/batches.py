"""Batches of events in one call, beside multi-row inserts of the same size."""

from __future__ import annotations

import secrets
from collections import Counter

from ..bench import OverTheWire
from ..measure import interleaved, median
from ..parts import BACKLOG, SCHEMA
from ..results import at_least
from .appends import together

_SIZES = (1, 10, 100, 1000, 2500)
_CALLERS = (1, 10)
_Case = tuple[int, int]
#: The load generator's scenarios begin at 10.
_GENERATED = {(callers, size): f"s3_batch_{size}_clients_{callers}" for callers in _CALLERS for size in _SIZES[1:]}


async def batches(bench: OverTheWire) -> None:
    """Batches of 1 to 2500 events from 1 and 10 callers."""
    lone = f"bench_single_{secrets.token_hex(4)}"
    async with bench.store.client() as client:
        await client.create_boundary(lone, SCHEMA)
    inserts = bench.inserts(BACKLOG)
    memory: dict[_Case, float | None] = {}
    errors: Counter[_Case] = Counter()

    async def appends() -> dict[_Case, float]:
        found: dict[_Case, float] = {}
        for callers in _CALLERS:
            found[callers, 1] = await together(bench, [lone] * callers)
            memory[callers, 1], errors[callers, 1] = bench.store.memory, 0
        figures = await bench.generate("s3")
        for case, scenario in _GENERATED.items():
            found[case] = figures[scenario].events_per_s
            memory[case] = figures[scenario].memory
            errors[case] += figures[scenario].errors
        return found

    async def floor() -> dict[_Case, float]:
        cases = [(callers, size) for callers in _CALLERS for size in _SIZES]
        return {(callers, size): (await inserts.run(size, callers)).rows_per_s for callers, size in cases}

    measured, floors = await interleaved(bench.sizes.rounds, appends, floor)
    for callers in _CALLERS:
        for size in _SIZES:
            case = callers, size
            bench.add(
                "batches",
                f"{size:,} event{'s' * (size > 1)}, {callers} caller{'s' * (callers > 1)}",
                median([one[case] for one in measured]),
                "events/s",
                floor=median([one[case] for one in floors]),
                bar=at_least(0.6) if size == 1000 else None,
                errors=errors[case],
                memory=memory[case],
            )
