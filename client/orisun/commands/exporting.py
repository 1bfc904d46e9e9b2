"""``orisun events export``."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import click

from ..errors import InvalidArgument, refuse
from ..position import NOTHING, Position
from ..queries import Query
from .base import Session, command
from .criteria import POSITION, criteria
from .events import events
from .output import json_text
from .raw import RawEvent, last, read

#: Bytes of a file's end that are read at a time, looking for its last whole line.
_CHUNK = 1 << 20
_LONGEST_LINE = 1 << 28


class Bar(Protocol):
    """What of click's progress bar is used."""

    def update(self, n_steps: int) -> None: ...


@contextlib.contextmanager
def progress(total: int, label: str) -> Iterator[Bar | None]:
    """A progress bar on stderr where that is a terminal, else None."""
    if not sys.stderr.isatty() or total <= 0:
        yield None
        return
    bar: Any = click.progressbar(
        length=total,
        label=label,
        file=sys.stderr,
        show_percent=True,
        show_eta=True,
        update_min_steps=max(total // 500, 1),
    )
    with bar:
        yield bar


@command(
    "export",
    within=events,
    patient=True,
    shown="""
    orisun events export orders --file orders.jsonl        again: goes on where the file ends
    orisun events export orders | gzip > orders.jsonl.gz
    orisun events export orders --where eventType=OrderPlaced --file placed.jsonl
    """,
)
@click.argument("boundary")
@click.option(
    "--file", "path", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Where to; one that is there is gone on with.  [default: standard output]",
)  # fmt: skip
@criteria
@click.option("--after", type=POSITION, metavar="POSITION", help="Begin after this position.")
async def export(session: Session, *, boundary: str, path: Path | None, query: Query, after: Position | None) -> None:
    """Write the events that there are now as JSON lines.

    Each line is one event with its boundary, position and time; numbers keep all their digits. Given a file that is
    there, it takes away a half-written last line and goes on after the last whole one, so an interrupted export is run
    again as it was, and one that is complete gets what came since. `orisun events import` reads the lines.
    """
    began = time.monotonic()
    head = await last(session.client, boundary)
    end = head.position if head is not None else NOTHING
    with contextlib.ExitStack() as stack:
        output: IO[bytes] = sys.stdout.buffer
        if path is not None:
            output = stack.enter_context(_opened(path))
            resumed = _last_event(output, path, boundary)
            if resumed is not None:
                if after is not None:
                    raise click.UsageError(f"{path} is there: it goes on after its last event; leave --after out")
                await _check_history(session, boundary, path, *resumed)
                after = resumed[0]
        total, done = end.prepare + 1, (after.prepare + 1 if after is not None else 0)
        count = 0
        bar = stack.enter_context(progress(total - done, f"Exporting {boundary}"))
        if done < total:
            async for event in read(session.client, boundary, query, after=after):
                if event.position > end:
                    break
                output.write(_line(boundary, event))
                count += 1
                if bar is not None:
                    bar.update(event.position.prepare + 1 - done)
                    done = event.position.prepare + 1
            if bar is not None:
                bar.update(total - done)
        output.flush()
        if path is not None:
            os.fsync(output.fileno())
    session.show.say(
        f"{count:,} events exported{f' to {path}' if path else ''} in {time.monotonic() - began:.1f} s"
        + (f", up to {end.commit},{end.prepare}." if head is not None else "; the boundary is empty.")
    )


def _line(boundary: str, event: RawEvent) -> bytes:
    record = {"boundary": boundary, **event.record()}
    return json_text(record, None).encode() + b"\n"


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("r+b" if path.exists() else "x+b")
    except OSError as problem:
        refuse(f"{path} cannot be written: {problem.strerror}")


def _last_event(file: IO[bytes], path: Path, boundary: str) -> tuple[Position, str] | None:
    """Position and id of the event of the last whole line; what is behind that line is cut off. None: there is none.

    Raises InvalidArgument for a file that is no export of the boundary; it stays as it is.
    """
    size = file.seek(0, os.SEEK_END)
    begin, text = size, b""
    # back to the line feed before the last whole line
    while begin > 0 and text.count(b"\n") < 2:
        step = min(_CHUNK, begin)
        begin -= step
        file.seek(begin)
        text = file.read(step) + text
        if len(text) > _LONGEST_LINE:
            refuse(f"{path} is no export: its last line is endless; export to another file")
    whole, feed, rest = text.rpartition(b"\n")
    if not feed and text[:1] not in (b"", b"{"):
        refuse(f"{path} is no export; export to another file")
    found = None
    if feed:
        line = whole.rpartition(b"\n")[2]
        try:
            event = json.loads(line)
            position = Position(event["position"]["commit_position"], event["position"]["prepare_position"])
            found = position, str(event["event_id"])
            name = event["boundary"]
        except (ValueError, TypeError, KeyError):
            raise InvalidArgument(f"{path} is there and no export; export to another file") from None
        if name != boundary:
            refuse(f'{path} is an export of boundary "{name}", not of "{boundary}"; export to another file')
    file.seek(size - len(rest))
    file.truncate()
    return found


async def _check_history(session: Session, boundary: str, path: Path, position: Position, event_id: str) -> None:
    """Raises InvalidArgument when the file's last event is not in the boundary: it is of another store."""
    async for event in read(session.client, boundary, Query(), start=position, limit=1):
        if (event.position, event.event_id) == (position, event_id):
            return
    refuse(
        f'{path} is of another history: boundary "{boundary}" has another event at '
        f"{position.commit},{position.prepare}, as after a restore; export to another file"
    )
