"""Commands of a boundary as SaveEvents stored them: newest first, and one with the events that it led to."""

from __future__ import annotations

import asyncio

from starlette.responses import Response

from ....core.position import Position
from ....errors import NotFound
from .. import show
from ..context import Context
from .events import command_of, position_in

_PER_PAGE = 20
#: Events of a command that are shown at a time.
_MOST_EVENTS = 50
#: Beyond every position.
_END = Position(2**63 - 1, 2**63 - 1)


async def commands(context: Context) -> Response:
    after = position_in(context.query.get("after", ""))
    found = await context.parts.reader.commands(context.boundary, after or _END, _PER_PAGE + 1, descending=True)
    shown = found[:_PER_PAGE]
    last = shown[-1].position if len(found) > _PER_PAGE else None
    return context.render(
        "commands.html",
        boundary=context.boundary.name,
        commands=shown,
        first=after is None,
        next=f"{last.commit}-{last.prepare}" if last else "",
    )


async def command(context: Context) -> Response:
    one = context.boundary
    position = position_in(context.request.path_params["position"])
    found = None if position is None else await command_of(context, position)
    if position is None or found is None or found.position != position:
        raise NotFound(f'boundary "{one.name}" has no command at that position; it is the one of its last event')
    before = position_in(context.query.get("before", "")) or Position(position.commit, position.prepare + 1)
    if before.commit != position.commit:
        raise NotFound("that is no event of this command's call")
    events = await context.parts.reader.page(one, (), _MOST_EVENTS + 1, descending=True, after=before)
    events = [event for event in events if event.commit == position.commit]
    shown = events[_MOST_EVENTS - 1 :: -1]
    return context.render(
        "command.html",
        boundary=one.name,
        command=found.command,
        position=position,
        stored=found.date_created,
        data=await asyncio.to_thread(show.pretty, found.command.data),
        metadata=await asyncio.to_thread(show.pretty, found.command.metadata),
        events=shown,
        earlier=f"{position.commit}-{shown[0].prepare}" if len(events) > _MOST_EVENTS else "",
        last="before" not in context.query,
    )
