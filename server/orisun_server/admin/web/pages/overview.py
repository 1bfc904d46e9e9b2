"""The overview: health, nodes, boundaries with their rates and lag."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from ....core import audit
from ....storage.boundaries import BACKEND, BoundaryRecord
from ..context import Context
from ..security import check_text

_PER_PAGE = 25


async def overview(context: Context) -> Response:
    parts = context.parts
    await parts.sampler.fresh(0.5)
    wanted = context.query.get("find", "").strip().lower()
    records = [record for record in await parts.catalog.list() if _shown(context, record)]
    found = [record for record in records if wanted in record.name.lower()]
    shown, page, pages = context.paged(found, _PER_PAGE)
    all_nodes = await parts.insight.nodes()
    nodes, nodes_page, nodes_pages = context.paged(all_nodes, _PER_PAGE, "nodes")
    holders = {lease.boundary: lease.node_id for lease in await parts.insight.held("publisher")}
    seen = {record.name for record in records}
    values: dict[str, Any] = {
        "records": shown,
        "boundaries": len(records),
        "find": context.query.get("find", ""),
        "page": page,
        "pages": pages,
        # sums, too, are of the boundaries that the caller may see
        "holders": {name: node_id for name, node_id in holders.items() if name in seen},
        "progress": parts.sampler.progress,
        "rates": parts.sampler.rates,
        "total": parts.sampler.rates(seen),
        "nodes": nodes,
        "node_count": len(all_nodes),
        "nodes_page": nodes_page,
        "nodes_pages": nodes_pages,
        "node_id": parts.node_id,
        "health": context.site.state.health,
        "pools": [
            (name, pool.get_size() - pool.get_idle_size(), pool.get_max_size()) for name, pool in parts.database.pools()
        ],
        "jetstream": parts.sampler.jetstream,
        "waiting": parts.appender.waiting,
        "subscriptions": sum(one.boundary in seen for one in parts.subscriptions.connected()),
        "unindexed": sum(entry.shape.boundary in seen for entry in parts.watch.queries.entries(unindexed=True)),
    }
    return context.render("_overview.html" if context.is_fragment else "overview.html", **values)


def _shown(context: Context, record: BoundaryRecord) -> bool:
    return context.may("boundary", record.name)


async def new_boundary(context: Context) -> Response:
    return context.render("boundary_new.html", values={}, problem="")


async def create_boundary(context: Context) -> Response:
    form = await context.form()
    name, description, schema = (form.get(field, "").strip() for field in ("name", "description", "schema"))
    check_text("description", description)
    record = await context.parts.catalog.create(name, description, BACKEND, schema or name, False)
    await context.parts.audit.acted(audit.BOUNDARY_CREATED, context.caller, boundary=name, namespace=schema or name)
    return context.go(f"/b/{name}", f"Boundary {name} is {record.status.name.lower()}.")
