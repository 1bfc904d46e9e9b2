"""Live delivery: how long an event is on its way, to one subscriber and to a hundred."""

from __future__ import annotations

from ..bench import OverTheWire
from ..generator import Figures
from ..measure import interleaved, median
from ..results import at_most

_CASES = (
    ("s8", "s8_live_200eps", "1 subscriber, 200 events/s"),
    ("s9", "s9_fanout_100x50eps", "100 subscribers, 50 events/s"),
)


async def live(bench: OverTheWire) -> None:
    """At steady rates that are far below what the store can do."""
    async with bench.doing("fan-out") as floor:
        for scenario, name, what in _CASES:
            await _case(bench, floor, scenario, name, what)


async def _case(bench: OverTheWire, floor: str, scenario: str, name: str, what: str) -> None:
    async def store() -> Figures:
        return (await bench.generate(scenario))[name]

    async def alone() -> Figures:
        return (await bench.generate(scenario, address=floor))[name]

    measured, floors = await interleaved(bench.sizes.rounds, store, alone)
    memory = measured[-1].memory
    for quantile in ("p50", "p95", "p99"):
        value, least = (median([getattr(one, quantile) for one in figures]) for figures in (measured, floors))
        bench.add("live", f"{what}, {quantile}", value, "ms", floor=least, memory=memory)

    def total(key: str) -> float:
        return sum(one.extra.get(key, 0) for one in measured)

    bench.add(
        "live",
        f"{what}, missing of {total('expected_deliveries'):,.0f}",
        total("missing_after_35s"),
        "deliveries",
        bar=at_most(0),
        memory=memory,
        errors=sum(one.errors for one in measured),
        note=f"{total('missing_after_4s'):,.0f} were over 4 s late",
    )
