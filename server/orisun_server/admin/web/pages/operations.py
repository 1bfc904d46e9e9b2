"""Subscriptions, queries without an index, the audit log, the configuration."""

from __future__ import annotations

import json
import os
from typing import Any

from starlette.responses import Response

from .... import environment
from ....core import audit as audit_types
from ....core.position import Position
from ..context import Context
from .events import position_in

_PER_PAGE = 50


async def subscriptions(context: Context) -> Response:
    parts = context.parts
    await parts.sampler.fresh()
    page = context.number("page", 1, 1, 10_000)
    held = await parts.insight.held("subscriber", limit=_PER_PAGE + 1, offset=(page - 1) * _PER_PAGE)
    standing = await parts.roll_call.ask([(lease.boundary, lease.name) for lease in held[:_PER_PAGE]])
    values: dict[str, Any] = {
        "held": held[:_PER_PAGE],
        "standing": standing,
        "progress": parts.sampler.progress,
        "page": page,
        "more": len(held) > _PER_PAGE,
        "node_id": parts.node_id,
    }
    return context.render("_subscriptions.html" if context.is_fragment else "subscriptions.html", **values)


async def queries(context: Context) -> Response:
    log = context.parts.watch.queries
    shown, page, pages = context.paged(log.entries(), _PER_PAGE)
    return context.render(
        "queries.html",
        entries=shown,
        page=page,
        pages=pages,
        threshold=log.slow_seconds,
        json=json.dumps,
    )


async def audit(context: Context) -> Response:
    parts = context.parts
    boundary = parts.catalog.get(context.settings.admin_boundary)
    wanted = context.query.get("type", "")
    types = (wanted,) if wanted in audit_types.TYPES else audit_types.TYPES
    after: Position | None = position_in(context.query.get("after", ""))
    found = await parts.reader.page(boundary, audit_types.of_types(types), _PER_PAGE + 1, descending=True, after=after)
    shown = found[:_PER_PAGE]
    rows: list[dict[str, Any]] = []
    for event in shown:
        who, what = json.loads(event.metadata), json.loads(event.data)
        rows.append(
            {"event": event, "act": event.event_type.removeprefix(audit_types.PREFIX), "who": who, "what": what}
        )
    return context.render(
        "audit.html",
        rows=rows,
        types=audit_types.TYPES,
        type=wanted,
        first=after is None,
        next=f"{shown[-1].commit}-{shown[-1].prepare}" if len(found) > _PER_PAGE else "",
    )


async def configuration(context: Context) -> Response:
    settings = context.parts.settings
    wanted, source = context.query.get("find", "").strip().lower(), context.query.get("from", "")
    origins = environment.origins(settings, os.environ)
    descriptions, values = environment.descriptions(), environment.effective(settings)
    sections = []
    for title, names in environment.sections().items():
        rows = [
            (name, values[name], origins[name], descriptions[name])
            for name in names
            if (wanted in name.lower() or wanted in descriptions[name].lower()) and source in ("", origins[name])
        ]
        if rows:
            sections.append((title, rows))
    return context.render(
        "configuration.html",
        sections=sections,
        find=context.query.get("find", ""),
        source=source,
        sources=sorted(set(origins.values())),
    )
