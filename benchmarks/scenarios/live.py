"""Live delivery: how long an event is on its way, to one subscriber and to a hundred."""

from __future__ import annotations

from ..bench import OverTheWire
from ..results import at_most

_CASES = (
    ("s8", "s8_live_200eps", "1 subscriber, 200 events/s"),
    ("s9", "s9_fanout_100x50eps", "100 subscribers, 50 events/s"),
)


async def live(bench: OverTheWire) -> None:
    """At steady rates that are far below what the store can do."""
    for scenario, name, what in _CASES:
        figures = (await bench.generate(scenario, scale=min(1.0, bench.sizes.scale * 2.5)))[name]
        for quantile in ("p50", "p95", "p99"):
            bench.add("live", f"{what}, {quantile}", getattr(figures, quantile), "ms", memory=figures.memory)
        missing = figures.extra.get("missing_after_35s", 0)
        expected = figures.extra.get("expected_deliveries", 0)
        bench.add(
            "live",
            f"{what}, missing of {expected:,.0f}",
            missing,
            "deliveries",
            bar=at_most(0),
            memory=figures.memory,
            errors=figures.errors,
            note=f"{figures.extra.get('missing_after_4s', 0):,.0f} were over 4 s late",
        )
