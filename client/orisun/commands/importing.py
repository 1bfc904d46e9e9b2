"""``orisun events import``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import click

from orisun_api import eventstore_pb2 as pb

from ..client import Client
from ..errors import Conflict, DuplicateEventId, InvalidArgument, OrisunError, ResourceExhausted, refuse
from ..position import NOTHING, Position
from ..queries import EVERYTHING, AppendCondition
from ..wire import position_of, save_query
from .base import Exit, Failure, Session, command, failure
from .events import events
from .exporting import progress
from .raw import event_of_json, last

#: Bytes of one append; a line that is longer is an append of its own.
_BATCH_BYTES = 4 << 20
_LONGEST_LINE = 64 << 20
_EVENT_NUMBER = re.compile(r"\bevent (\d+)\b")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
#: Ids that are looked for at the same time.
_AT_ONCE = 64
#: No event is ever there, so that an append under this condition stores nothing: it only tells whether the id is known.
_NOWHERE = AppendCondition(EVERYTHING, Position((1 << 62) + 1, 1 << 62))


class Line(NamedTuple):
    """An event and the number of its line, from 1."""

    number: int
    event: pb.EventToSave


class Batch:
    """Events of consecutive lines, each id once."""

    def __init__(self, end: int) -> None:
        self.lines: list[Line] = []
        #: Bytes of these lines.
        self.size = 0
        #: Lines that repeat an event id of the same batch.
        self.repeated = 0
        #: The last line, empty ones too, and the bytes of the file up to its end.
        self.end, self.offset = end, 0
        self._ids: set[str] = set()

    def add(self, line: Line, size: int) -> None:
        key = _key(line.event.event_id)
        if key in self._ids:
            self.repeated += 1
            return
        self._ids.add(key)
        self.lines.append(line)
        self.size += size


@dataclass(slots=True)
class Counts:
    """What became of the lines."""

    new: int = 0
    known: int = 0
    #: Up to this line all is done.
    line: int = 0


@command(
    "import",
    within=events,
    patient=True,
    shown="""
    orisun events import orders orders.jsonl          again: stores only what is not there yet
    zcat orders.jsonl.gz | orisun events import orders -
    orisun events import orders orders.jsonl --from-line 120001
    orisun events import orders orders.jsonl --check
    """,
)
@click.argument("boundary")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--batch", "size", type=click.IntRange(1, 10_000), default=1_000, show_default=True, metavar="N",
    help="Events of one append, stored all or none.",
)  # fmt: skip
@click.option("--from-line", type=click.IntRange(min=1), default=1, metavar="N", help="Leave out the lines before it.")
@click.option("--check", is_flag=True, help="Read the lines and send nothing.")
async def import_(session: Session, *, boundary: str, file: str, size: int, from_line: int, check: bool) -> None:
    """Append events from JSON lines, in their order.

    A line has event_id, event_type, data and perhaps metadata; what else it has, such as the position in an export, is
    ignored: events get new positions and times. An event whose id is in the boundary already is known, whatever it
    holds (that is not compared), and left as it is, so an import that was interrupted is run again as it was. It stops
    at the first line that cannot be stored; what came before it stays. Events of other writers may come in between.
    """
    began, counts = time.monotonic(), Counts(line=from_line - 1)
    with _opened(file) as lines:
        total = os.fstat(lines.fileno()).st_size if file != "-" else 0
        try:
            with progress(total, f"{'Checking' if check else 'Importing'} {file}") as bar:
                importer = None if check else await Importer.begin(session.client, boundary, file, counts)
                shown = 0
                for batch in _batches(lines, file, size, from_line):
                    counts.known += batch.repeated
                    if importer is None:
                        counts.new += len(batch.lines)
                    elif batch.lines:
                        await importer.store(batch.lines)
                    counts.line = batch.end
                    if bar is not None:
                        bar.update(batch.offset - shown)
                        shown = batch.offset
        except (asyncio.CancelledError, OrisunError) as stopped:
            told = _so_far(counts, file)
            if isinstance(stopped, OrisunError):
                found = failure(stopped, session.connection)
                raise Failure(f"{found.message}{told}", Exit(found.exit_code)) from stopped
            session.show.say(f"\nInterrupted{told or ', and nothing was stored'}")
            raise
    if check:
        session.show.say(f"{counts.new:,} events in {counts.line:,} lines can be read; nothing was sent.")
        return
    spent = time.monotonic() - began
    if session.show.for_people:
        session.show.say(
            f"{counts.new:,} events are new, {counts.known:,} were known already"
            f" ({spent:.1f} s, {(counts.new + counts.known) / max(spent, 1e-3):,.0f} events/s)."
        )
    else:
        session.show.record({"new": counts.new, "known": counts.known, "lines": counts.line})


def _so_far(counts: Counts, file: str) -> str:
    if not counts.new + counts.known:
        return ""
    return (
        f". Up to line {counts.line:,} of {file}, {counts.new:,} events are new and {counts.known:,} were known; "
        f"run it again to go on, faster with --from-line {counts.line + 1}"
    )


class Importer:
    """Stores batches, and tells what was new.

    A server takes the very append that it took before and answers with its position. Where other events of the batch
    are known (other batches, or an application that saved them), it refuses; then each id is looked for, and what is
    not known is appended.
    """

    def __init__(self, client: Client, boundary: str, file: str, counts: Counts, known_up_to: Position) -> None:
        self._client, self._boundary, self._file, self._counts = client, boundary, file, counts
        self._known_up_to = known_up_to

    @classmethod
    async def begin(cls, client: Client, boundary: str, file: str, counts: Counts) -> Importer:
        head = await last(client, boundary)
        return cls(client, boundary, file, counts, head.position if head is not None else NOTHING)

    async def store(self, lines: Sequence[Line]) -> None:
        """Raises what the server refuses; InvalidArgument names the line."""
        try:
            position = await self._save([line.event for line in lines])
        except DuplicateEventId:
            known = await self._known(lines)
            self._counts.known += len(known)
            if not known:
                raise
            if left := [line for line in lines if line.event.event_id not in known]:
                await self.store(left)
        except ResourceExhausted:
            if len(lines) == 1:
                raise
            middle = len(lines) // 2
            await self.store(lines[:middle])
            await self.store(lines[middle:])
        except InvalidArgument as error:
            number = _EVENT_NUMBER.search(str(error))
            where = lines[int(number[1])].number if number and int(number[1]) < len(lines) else lines[0].number
            raise InvalidArgument(f"{self._file}, line {where}: {error}") from None
        else:
            if position > self._known_up_to:
                self._counts.new += len(lines)
                self._known_up_to = position
            else:
                self._counts.known += len(lines)

    async def _known(self, lines: Sequence[Line]) -> set[str]:
        """The ids that the boundary has."""
        known: set[str] = set()
        left = iter(lines)

        async def look() -> None:
            for line in left:
                try:
                    await self._save([line.event], _NOWHERE)
                except Conflict:
                    continue  # it was not refused for its id
                except DuplicateEventId:
                    pass
                known.add(line.event.event_id)

        await asyncio.gather(*(look() for _ in range(_AT_ONCE)))
        return known

    async def _save(self, messages: list[pb.EventToSave], condition: AppendCondition | None = None) -> Position:
        request = pb.SaveEventsRequest(boundary=self._boundary, query=save_query(condition), events=messages)
        result = await self._client.calls.unary("events", "SaveEvents", request)
        return position_of(result.log_position)


@contextlib.contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        opened = Path(file).open("rb")  # noqa: SIM115 - closed below
    except OSError as problem:
        refuse(f"{file} cannot be read: {problem.strerror}")
    with opened:
        yield opened


def _batches(lines: IO[bytes], file: str, size: int, from_line: int) -> Iterator[Batch]:
    """The file in batches, one of them in memory. Raises InvalidArgument with the number of the line."""
    batch = Batch(from_line - 1)
    number = 0
    offset = 0
    while text := lines.readline(_LONGEST_LINE):
        number += 1
        offset += len(text)
        if number >= from_line and text.strip():
            try:
                if len(text) >= _LONGEST_LINE:
                    refuse(f"longer than {_LONGEST_LINE >> 20} MiB; no event may be")
                event = event_of_json(text.decode())
            except ValueError as problem:
                # what came before it is stored first, so that the counts are true
                yield batch
                told = "no UTF-8 text" if isinstance(problem, UnicodeDecodeError) else problem
                refuse(f"{file}, line {number}: {told}")
            if batch.lines and (len(batch.lines) >= size or batch.size + len(text) > _BATCH_BYTES):
                yield batch
                batch = Batch(number - 1)
            batch.add(Line(number, event), len(text))
        batch.end, batch.offset = number, offset
    yield batch


def _key(event_id: str) -> str:
    """The id as the server keeps it: UUIDs in lower case."""
    return event_id.lower() if _UUID.fullmatch(event_id) else event_id
