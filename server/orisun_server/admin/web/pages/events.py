"""The event browser: pages of events by criteria, one event, and what comes live."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import structlog
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from orisun_api import eventstore_pb2 as pb

from ....core.criteria import Query, query
from ....core.event import Event, StoredCommand
from ....core.position import NOTHING, Position
from ....errors import InvalidArgument, NotFound, OrisunError, ResourceExhausted
from ....storage.boundaries import Boundary
from .. import show
from ..context import Context
from ..security import check_text

_log = structlog.get_logger(__name__)

_SIZES = (20, 50, 100)
#: Characters of a form's criteria.
_MOST_CRITERIA = 10_000
_PAIR = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[^\s="]+)=("(?:[^"\\]|\\.)*"|[^\s"]*)(?=\s|$)')
_POSITION = re.compile(r"(-?\d{1,18})-(-?\d{1,18})")
#: Live tails of one server, and of one user on it; so no user takes them all.
_MOST_TAILS, _MOST_OF_USER = 50, 10
#: Events shown at a time, and seconds between two showings.
_SHOWN, _PAUSE = 25, 0.3
_HEARTBEAT = 15.0
#: Seconds that a page of events may take; without an index it reads the whole boundary.
_PATIENCE = 20.0


def parse_query(text: str, event_type: str) -> Query:
    """The query of a form: a criterion a line, ``key=value`` separated by spaces, ``"…"`` (as JSON writes texts) where
    a key or value has spaces; the event type, if one is given, is asked for in each. Raises InvalidArgument."""
    criteria = []
    for number, line in enumerate(map(str.rstrip, text.split("\n")), start=1):
        tags, at = [], 0
        while at < len(line):
            pair = _PAIR.match(line, at)
            if pair is None:
                raise InvalidArgument(
                    f'criteria, line {number}: "{line[at : at + 40].strip()}" is not key=value; write '
                    'username=alice, or name="Alice Smith"'
                )
            tags.append((_plain(pair[1]), _plain(pair[2])))
            at = pair.end()
        if tags:
            criteria.append(tags)
    if event_type:
        criteria = [[*tags, ("eventType", event_type)] for tags in criteria or [[]]]
    return query(criteria)


def _plain(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        plain = str(json.loads(text))
        plain.encode()  # half of a surrogate pair is no text
    except ValueError:
        raise InvalidArgument(f"criteria: {text} is no text in quotes as JSON writes it") from None
    return check_text("criteria", plain, _MOST_CRITERIA)


def _asked(context: Context) -> Query:
    """What the form asks for, within the limits that rpcs have too. Raises InvalidArgument."""
    text = check_text("criteria", context.query.get("criteria", ""), _MOST_CRITERIA)
    asked = parse_query(text, check_text("type", context.query.get("type", "").strip(), 255))
    most, most_tags = context.settings.append_max_criteria, context.settings.append_max_tags
    if len(asked) > most:
        raise InvalidArgument(
            f"criteria: {len(asked)} are given; at most {most} are allowed (ORISUN_APPEND_MAX_CRITERIA)"
        )
    if (tags := max(map(len, asked), default=0)) > most_tags:
        raise InvalidArgument(
            f"criteria: one has {tags} pairs; at most {most_tags} are allowed (ORISUN_APPEND_MAX_TAGS)"
        )
    return asked


async def events(context: Context) -> Response:
    one = context.boundary
    descending = context.query.get("direction", "newest") != "oldest"
    size = min(_SIZES, key=lambda choice: abs(choice - context.number("size", _SIZES[0], 1, 1_000)))
    problem, found = "", list[Event]()
    after = position_in(context.query.get("after", ""))
    try:
        asked = _asked(context)
        async with asyncio.timeout(_PATIENCE):
            found = await context.parts.reader.page(one, asked, size + 1, descending=descending, after=after)
    except (InvalidArgument, ResourceExhausted) as error:
        problem = str(error)
    except TimeoutError:
        problem = (
            f"Looking took longer than {_PATIENCE:g} s and was ended: no index serves these criteria, or PostgreSQL is "
            "busy. The page Queries says which index would help."
        )
    more = len(found) > size
    found = found[:size]
    values: dict[str, Any] = {
        "boundary": one.name,
        "events": found,
        "sizes": _SIZES,
        "size": size,
        "descending": descending,
        "criteria_text": context.query.get("criteria", ""),
        "type": context.query.get("type", ""),
        "problem": problem,
        "next": f"{found[-1].commit}-{found[-1].prepare}" if more and found else "",
        "first": after is None,
        "live_url": context.link(size=None, direction=None, after=None).replace(
            path := context.path, path + "/live", 1
        ),
    }
    return context.render("events.html", 400 if problem else 200, **values)


async def event(context: Context) -> Response:
    one, reader = context.boundary, context.parts.reader
    position = position_in(context.request.path_params["position"])
    if position is None:
        raise NotFound("a position is written as transaction_id-global_id, such as 42-41")
    found = await reader.page(one, (), 1, start=position)
    if not found or found[0].position != position:
        raise NotFound(
            f'boundary "{one.name}" has no event at position ({position.commit}, {position.prepare}); a failed call '
            "may have left a gap there"
        )
    before = await reader.page(one, (), 1, after=position, descending=True)
    following = await reader.page(one, (), 1, after=position)
    return context.render(
        "event.html",
        boundary=one.name,
        event=found[0],
        # a large event must not hold up what else this server does
        data=await asyncio.to_thread(show.pretty, found[0].data),
        metadata=await asyncio.to_thread(show.pretty, found[0].metadata),
        before=before[0] if before else None,
        following=following[0] if following else None,
        command=await command_of(context, position),
    )


async def command_of(context: Context, position: Position) -> StoredCommand | None:
    """The command that a position's events were stored with, if any was told: their call has one transaction_id."""
    before = Position(position.commit, -1)
    found = await context.parts.reader.commands(context.boundary, before, 1)
    return found[0] if found and found[0].position.commit == position.commit else None


async def go_to(context: Context) -> Response:
    """From a form with a position to its event."""
    text = context.query.get("position", "").strip().strip("()").replace(", ", "-").replace(",", "-")
    position = position_in(text)
    if position is None:
        raise InvalidArgument(f'"{text[:60]}" is no position; write transaction_id-global_id, such as 42-41')
    return context.go(f"/b/{context.boundary.name}/events/{position.commit}-{position.prepare}")


async def live(context: Context) -> Response:
    """New events as they come, as server-sent events whose data is HTML."""
    asked, one = _asked(context), context.boundary
    head = await context.parts.reader.head(one)
    tails, user_id = context.site.live_tails, context.caller.user_id
    if tails[user_id] >= _MOST_OF_USER:
        raise ResourceExhausted(f"you have {_MOST_OF_USER} live tails open on this server already; close one")
    if tails.total() >= _MOST_TAILS:
        raise ResourceExhausted(f"{_MOST_TAILS} live tails are open on this server already; try again later")
    return _LiveTail(_stream(context, one, asked, head), tails, user_id)


class _LiveTail(StreamingResponse):
    """Counts among its user's tails while it is sent; begun before anything else can look at the number."""

    def __init__(self, pieces: AsyncGenerator[str], tails: Counter[str], user_id: str) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(pieces, media_type="text/event-stream", headers=headers)
        self._pieces, self._tails, self._user_id = pieces, tails, user_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._tails[self._user_id] += 1
        try:
            async with aclosing(self._pieces):
                await super().__call__(scope, receive, send)
        finally:
            self._tails[self._user_id] -= 1
            self._tails += Counter()  # leaves out whom none are left of


async def _stream(context: Context, one: Boundary, asked: Query, head: Position) -> AsyncGenerator[str]:
    parts = context.parts
    name = f"admin page: {context.caller.username[:100]} {secrets.token_hex(4)}"
    pending: list[Event] = []
    missed = 0
    changed = asyncio.Event()
    failure: list[str] = []

    async def follow() -> None:
        nonlocal missed
        after = None if head == NOTHING else head
        try:
            async with aclosing(parts.subscriptions.subscribe(one, asked, after, name)) as stream:
                async for few in stream:
                    pending.extend(map(_event, few))
                    if (excess := len(pending) - _SHOWN) > 0:
                        del pending[:excess]
                        missed += excess
                    changed.set()
        except OrisunError as error:
            failure.append(str(error))
        except Exception:
            _log.exception("a live view failed", boundary=one.name)
            failure.append("The live view failed; the server's log says more.")
        changed.set()

    task = asyncio.create_task(follow(), name="admin-live-tail")
    template = context.site.env.get_template("_event_rows.html")
    try:
        yield "retry: 3000\n\n"
        while context.is_signed_in:
            try:
                async with asyncio.timeout(_HEARTBEAT):
                    await changed.wait()
            except TimeoutError:
                yield ": still here\n\n"
                continue
            if not context.is_signed_in:
                return
            changed.clear()
            shown, skipped = pending[:], missed
            pending.clear()
            missed = 0
            if shown:
                html = template.render(events=shown[::-1], boundary=one.name, skipped=skipped, live=True)
                yield "".join(f"data: {line}\n" for line in html.replace("\r", " ").split("\n")) + "\n"
            if failure:
                yield "event: ended\ndata: " + failure[0].replace("\r", " ").replace("\n", " ") + "\n\n"
                return
            await asyncio.sleep(_PAUSE)
    finally:
        task.cancel()
        await asyncio.wait([task])


def _event(body: bytes) -> Event:
    message = pb.Event.FromString(body)
    position = message.position
    return Event(
        position.commit_position,
        position.prepare_position,
        message.event_id,
        message.event_type,
        message.data,
        message.metadata,
        message.date_created.ToDatetime(),
    )


def position_in(text: str) -> Position | None:
    """A position as addresses of the page write it, such as ``42-41``; None for anything else."""
    found = _POSITION.fullmatch(text)
    return Position(int(found[1]), int(found[2])) if found else None
