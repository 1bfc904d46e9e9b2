"""One boundary: counts, positions, publisher, sizes, the chart of appends."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from ..context import Context


async def boundary(context: Context) -> Response:
    parts, one = context.parts, context.boundary
    await parts.sampler.fresh()
    record = await parts.catalog.find(one.name)
    holders = await parts.insight.held("publisher", boundary=one.name, limit=1)
    counts = parts.watch.metrics.boundaries[one.name]
    events_bytes, indexes_bytes = await parts.insight.sizes(one)
    values: dict[str, Any] = {
        "record": record,
        "count": await parts.administration.counts.count(one),
        "progress": parts.sampler.progress.get(one.name),
        "holder": holders[0] if holders else None,
        "node_id": parts.node_id,
        "sizes": (events_bytes, indexes_bytes),
        "rates": parts.sampler.rates(one.name),
        "counts": counts,
        "subscriptions": [open_one for open_one in parts.subscriptions.connected() if open_one.boundary == one.name],
        "indexes": len(await parts.indexes.list(one)),
    }
    return context.render("_boundary.html" if context.is_fragment else "boundary.html", **values)
