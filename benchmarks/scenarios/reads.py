"""Reading what is stored: one tag, all pages, and a subscription that catches up."""

from __future__ import annotations

from ..bench import OverTheWire
from ..events import PER_KEY
from ..generator import Figures
from ..measure import BenchError
from ..parts import BIG
from ..results import at_least

_TAG = "s5_query_1tag_conc_"
_PAGES, _CATCH_UP = "s6_read_all_page_1000", "s7_catchup_subscribe"


async def reads(bench: OverTheWire) -> None:
    """The load generator fills a log, then reads it from the store and from the transport alone in turns."""
    sizes = bench.sizes
    figures = await bench.compare("s5,s6,s7", preload=sizes.log, settle=sizes.settle)
    for callers in (1, 50):
        store, floor = figures[f"{_TAG}{callers}"]
        wrong = int(store.extra.get("wrong_size", 0))
        _add_tag(bench, f"{sizes.log // 1000}", sizes.log, callers, store, floor.ops_per_s, wrong=wrong)
    store, floor = figures[_PAGES]
    bench.add(
        "reads",
        f"paging through {sizes.log:,}, 1,000 a page",
        store.events_per_s,
        "events/s",
        floor=floor.events_per_s,
        memory=store.memory,
        errors=_incomplete(store),
    )
    store, floor = figures[_CATCH_UP]
    bench.add(
        "catch-up",
        f"{sizes.log:,} events",
        store.events_per_s,
        "events/s",
        floor=floor.events_per_s,
        bar=at_least(0.6),
        memory=store.memory,
        errors=_incomplete(store),
    )

    async with bench.store.client() as client:
        found = await client.page(BIG, "k0", PER_KEY)
    if found != PER_KEY:
        raise BenchError(f"a page of {PER_KEY} in the large log has {found} events")
    # the generator takes the boundary as it is, and knows nothing of what it holds
    figures = await bench.compare("s5", preload=0, settle=0, boundary=BIG)
    for callers in (1, 50):
        store, floor = figures[f"{_TAG}{callers}"]
        _add_tag(bench, f"{PER_KEY}", sizes.big, callers, store, floor.ops_per_s, wrong=0)


def _add_tag(
    bench: OverTheWire, matches: str, log: int, callers: int, figures: Figures, floor: float, *, wrong: int
) -> None:
    bench.add(
        "reads",
        f"one tag, {matches} of {log:,}, {callers} caller{'s' * (callers > 1)}",
        figures.ops_per_s,
        "reads/s",
        floor=floor,
        memory=figures.memory,
        errors=wrong + figures.errors,
        note=f"p50 {figures.p50:.1f} ms",
    )


def _incomplete(figures: Figures) -> int:
    """Errors, and one more for events that were missing or out of order."""
    is_whole = figures.extra.get("complete") == 1 and figures.extra.get("ordered", 1) == 1
    return figures.errors + (not is_whole) + int(figures.extra.get("out_of_order", 0))
