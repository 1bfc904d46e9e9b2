"""``orisun events``: save, get and tail; export and import are modules of their own."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from orisun_api import eventstore_pb2 as pb

from ..errors import refuse
from ..ids import new_id
from ..position import NOTHING, Position
from ..queries import AppendCondition, Query
from ..wire import position_of, save_query
from .base import Session, command, group
from .criteria import POSITION, criteria
from .output import Record
from .raw import COLUMNS, WIDE_COLUMNS, RawEvent, RawSubscription, event_of_json, last, position_record, read

events = group(
    "events",
    "Save, read, follow, export and import events.",
    """
    orisun events save orders --type OrderPlaced --data '{"order": "o-1", "amount": 10}'
    orisun events get orders --where eventType=OrderPlaced --where order=o-1
    orisun events tail orders
    orisun events export orders --file orders.jsonl
    orisun events import orders orders.jsonl
    """,
)

_wide = click.option("-w", "--wide", is_flag=True, help="Add ids and metadata to the table, and cut nothing.")


@command(
    "save",
    within=events,
    shown="""
    orisun events save orders --type OrderPlaced --data '{"order": "o-1", "amount": 10}'
    echo '{"order": "o-1"}' | orisun events save orders --type OrderPaid --data -

    only if no event has the order o-1 yet, and only if the latest that has it is at 12,11:
    orisun events save orders --type OrderPlaced --data '{"order": "o-1"}' --where order=o-1 --expected none
    orisun events save orders --type OrderPaid --data '{"order": "o-1"}' --where order=o-1 --expected 12,11

    several at once, all or none, as JSON lines:
    orisun events save orders --file events.jsonl
    """,
)
@click.argument("boundary")
@click.option("--type", "event_type", metavar="TYPE", help="Type of the event.")
@click.option("--data", metavar="JSON", help="Its data, a JSON object; - reads it from standard input.  [default: {}]")
@click.option("--metadata", metavar="JSON", default="{}", help="Its metadata, a JSON object.")
@click.option("--id", "event_id", metavar="TEXT", help="Its id; saving it again changes nothing.  [default: a new one]")
@click.option(
    "--file", "path", type=click.Path(dir_okay=False, allow_dash=True), metavar="FILE",
    help="Events as JSON lines instead: event_id, event_type, data, metadata; - is standard input.",
)  # fmt: skip
@criteria
@click.option(
    "--expected", type=POSITION, metavar="POSITION",
    help="Save only if the latest event that --where matches (without it: the boundary's last one) is there; `none`: "
    "if there is none. Otherwise the exit code is 3.",
)  # fmt: skip
async def save(
    session: Session,
    *,
    boundary: str,
    event_type: str | None,
    data: str | None,
    metadata: str,
    event_id: str | None,
    path: str | None,
    query: Query,
    expected: Position | None,
) -> None:
    """Append one event, or several at once.

    The answer is the position of the last one. With --expected they are appended only if nothing that matches --where
    has happened since.
    """
    if (event_type is None) == (path is None):
        raise click.UsageError("give --type, and --data with it, or --file")
    if query.criteria and expected is None:
        raise click.UsageError("--where says what to check: give --expected with it, a position or none")
    if event_type is not None:
        text = sys.stdin.read() if data == "-" else data
        single = pb.EventToSave(
            event_id=event_id or new_id(), event_type=event_type, data=text or "{}", metadata=metadata
        )
        messages: Sequence[pb.EventToSave] = [single]
    else:
        messages = _from_lines(str(path))
    request = pb.SaveEventsRequest(
        boundary=boundary,
        query=save_query(AppendCondition(query, expected) if expected is not None else None),
        events=messages,
    )
    result = await session.client.calls.unary("events", "SaveEvents", request)
    position = position_of(result.log_position)
    if session.show.for_people:
        ids = messages[0].event_id if len(messages) == 1 else f"{len(messages)} events"
        session.show.say(f"Saved {ids} at {position.commit},{position.prepare}.")
        return
    record: Record = {"position": position_record(position), "event_ids": [message.event_id for message in messages]}
    session.show.record(record)


def _from_lines(path: str) -> list[pb.EventToSave]:
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as problem:
        refuse(f"{path} cannot be read: {problem.strerror}")
    except UnicodeDecodeError:
        refuse(f"{path} is no UTF-8 text")
    messages = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                messages.append(event_of_json(line))
            except ValueError as problem:
                refuse(f"{path}, line {number}: {problem}")
    return messages or refuse(f"{path} holds no event")


@command(
    "get",
    within=events,
    shown="""
    orisun events get orders                                    the first 100
    orisun events get orders --last 5
    orisun events get orders --where eventType=OrderPlaced --where order=o-1
    orisun events get orders --where order=o-1 --or --where order=o-2
    orisun events get orders --after 12,11 --limit 1000 --output json
    """,
)
@click.argument("boundary")
@criteria
@click.option("--after", type=POSITION, metavar="POSITION", help="Begin after this position.")
@click.option("--at", "start", type=POSITION, metavar="POSITION", help="Begin with this position.")
@click.option("--last", "newest", type=click.IntRange(min=1), metavar="N", help="The newest N, the newest first.")
@click.option("--descending", is_flag=True, help="From new to old.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=100, show_default=True, metavar="N", help="Most events; 0: all."
)
@_wide
async def get(
    session: Session,
    *,
    boundary: str,
    query: Query,
    after: Position | None,
    start: Position | None,
    newest: int | None,
    descending: bool,
    limit: int,
    wide: bool,
) -> None:
    """Read stored events, in the order of their positions.

    The table cuts data to the width of the terminal; JSON and YAML have all of it.
    """
    if after is not None and start is not None:
        raise click.UsageError("give --after or --at, not both")
    if newest is not None:
        descending, limit = True, newest
    most, last_position, more = limit or None, "", ""
    with session.show.stream(WIDE_COLUMNS if wide else COLUMNS) as stream:
        found = read(
            session.client, boundary, query, after=after, start=start, descending=descending,
            # one more tells whether there are more
            limit=most + 1 if most and newest is None else most,
        )  # fmt: skip
        async for event in found:
            if stream.count == most:
                more = f"There are more; go on with --after {last_position}, or take all with --limit 0."
                break
            stream.add(event.record())
            last_position = f"{event.position.commit},{event.position.prepare}"
    sys.stdout.flush()
    session.show.say(more)
    if session.show.for_people and not stream.count:
        session.show.say(f"No events in {boundary}{' that match' if query.criteria else ''}.")


@command(
    "tail",
    within=events,
    shown="""
    orisun events tail orders                              what comes from now on
    orisun events tail orders --last 10 --where eventType=OrderPlaced
    orisun events tail orders --after 12,11 --output json | jq --unbuffered -c .data
    """,
)
@click.argument("boundary")
@criteria
@click.option("--last", "newest", type=click.IntRange(min=1), metavar="N", help="Begin with the newest N.")
@click.option(
    "--after", type=POSITION, metavar="POSITION", help="Begin after this position; none: with the first event."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@click.option("--name", metavar="TEXT", help="The subscriber's name, used once at a time.  [default: a random one]")
@_wide
async def tail(
    session: Session,
    *,
    boundary: str,
    query: Query,
    newest: int | None,
    after: Position | None,
    limit: int | None,
    name: str | None,
    wide: bool,
) -> None:
    """Follow a boundary: print events as they are stored, until Ctrl-C.

    A lost server is found again, and no event is missed or printed twice. JSON is one event a line, YAML one document
    an event.
    """
    if after is not None and newest is not None:
        raise click.UsageError("give --after or --last, not both")
    begin = after if after is not None else await _head(session, boundary)
    shown: list[RawEvent] = []
    if newest is not None:
        shown = [event async for event in read(session.client, boundary, query, descending=True, limit=newest)]
        begin = shown[0].position if shown else begin
    subscription = RawSubscription(
        session.client,
        boundary,
        name or f"orisun-tail-{secrets.token_hex(4)}",
        query,
        None if begin == NOTHING else begin,
    )
    with session.show.stream(WIDE_COLUMNS if wide else COLUMNS, live=True) as stream:
        for event in reversed(shown[:limit]):
            stream.add(event.record())
        if limit is not None and stream.count >= limit:
            return
        async with subscription:
            while limit is None or stream.count < limit:
                for found in await subscription.batch(100 if limit is None else limit - stream.count):
                    stream.add(found.record())  # type: ignore[attr-defined]  # they are raw


async def _head(session: Session, boundary: str) -> Position:
    event = await last(session.client, boundary)
    return event.position if event is not None else NOTHING
