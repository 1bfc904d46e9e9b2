"""A boundary's events as a file: compressed JSON Lines and a manifest beside it, written, read back and compared.

A line is one event, in the order of positions::

    {"commit_position": 3, "prepare_position": 2, "event_id": "...", "event_type": "...", "date_created": "...Z",
     "data": {...}, "metadata": {...}}

The last event of a call that told a command has it too: ``"command": {"command_id", "type", "data", "metadata"}``.
``data`` and ``metadata`` are PostgreSQL's own text of the jsonb, so that numbers of any size stay exact. The file and
the manifest appear under their names only when they are whole and on the disk.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

import asyncpg

from ..core.position import NOTHING, Position
from ..errors import FailedPrecondition, NotFound
from .boundaries import Boundary
from .database import Database

_PAGE = 1_000
_FORMAT = "orisun-events/1"

_ROWS = """
SELECT e.global_id, (jsonb_build_object(
    'commit_position', e.transaction_id, 'prepare_position', e.global_id, 'event_id', e.event_id,
    'event_type', e.event_type, 'data', e.data, 'metadata', e.metadata,
    'date_created', to_char(e.date_created AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
    || CASE WHEN c.global_id IS NULL THEN '{}' ELSE jsonb_build_object('command', jsonb_build_object(
        'command_id', c.command_id, 'type', c.command_type, 'data', c.data, 'metadata', c.metadata)) END)::text AS line
FROM {events} AS e
LEFT JOIN {commands} AS c ON c.transaction_id = e.transaction_id AND c.global_id = e.global_id
WHERE e.global_id > $1 AND e.global_id <= $2 ORDER BY e.global_id LIMIT $3
"""
_SUMMARY = """
SELECT (SELECT count(*) FROM {events} WHERE global_id <= h.global_id), h.transaction_id, h.global_id
FROM (SELECT transaction_id, global_id FROM {events} ORDER BY global_id DESC LIMIT 1) AS h
"""


@dataclass(frozen=True)
class Manifest:
    """What an archive holds; ``sha256`` is of the compressed file, hexadecimal."""

    boundary: str
    schema: str
    file: str
    count: int
    last_commit_position: int
    last_prepare_position: int
    sha256: str
    format: str = _FORMAT

    def text(self) -> str:
        """As the manifest's file has it."""
        return json.dumps(asdict(self), indent=2) + "\n"


class ArchiveBroken(FailedPrecondition):
    """The archive, read back, is not what was written."""


async def summary(database: Database, boundary: Boundary) -> tuple[int, Position]:
    """How many events the boundary has, counted one by one, and the last position. Raises NotFound, Unavailable."""
    try:
        with database.guard():
            row = await database.read.fetchrow(_SUMMARY.replace("{events}", boundary.names.q_events), timeout=3600)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError) as error:
        raise NotFound(f'boundary "{boundary.name}" has no tables in schema "{boundary.schema}"') from error
    return (row[0], Position(row[1], row[2])) if row else (0, NOTHING)


async def write(database: Database, boundary: Boundary, directory: Path, file: str) -> Manifest:
    """Archive the events up to the last one of this moment, and check the file against PostgreSQL.

    A file of that name is replaced. The manifest is ``<file>.manifest.json``.

    Raises:
        NotFound: There are no such tables.
        ArchiveBroken: What was written is not what is read back, or not what PostgreSQL holds.
        Unavailable: PostgreSQL cannot be reached.
        OSError: The directory cannot be written to.
    """
    count, last = await summary(database, boundary)
    target = directory / file
    partial = target.with_name(f".{file}.partial")
    try:
        await _fill(database, boundary, last, partial)
        found, found_last, checksum = await asyncio.to_thread(read_back, partial)
        if (found, found_last) != (count, last):
            raise ArchiveBroken(
                f"the archive has {found} events up to {tuple(found_last)}, and PostgreSQL {count} up to {tuple(last)}"
            )
        manifest = Manifest(boundary.name, boundary.schema, file, count, last.commit, last.prepare, checksum)
        await asyncio.to_thread(_settle, partial, target, manifest)
    finally:
        partial.unlink(missing_ok=True)
    return manifest


async def _fill(database: Database, boundary: Boundary, last: Position, path: Path) -> None:
    with path.open("wb") as raw:
        # no name and no time in the header: the same events give the same file
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as packed:
            async for lines in _pages(database, boundary, last):
                await asyncio.to_thread(packed.write, lines)
        raw.flush()
        os.fsync(raw.fileno())


def read_back(path: Path) -> tuple[int, Position, str]:
    """Number of events, last position and checksum of an archive. Raises ArchiveBroken unless it is whole."""
    checksum = hashlib.sha256()
    with path.open("rb") as raw:
        while block := raw.read(1 << 20):
            checksum.update(block)
    count, last = 0, NOTHING
    try:
        with gzip.open(path, "rb") as lines:
            for line in lines:
                event = json.loads(line)
                position = Position(event["commit_position"], event["prepare_position"])
                if position <= last:
                    raise ArchiveBroken(f"line {count + 1} is not after the one before it")
                count, last = count + 1, position
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise ArchiveBroken(f"line {count + 1} cannot be read ({type(error).__name__})") from error
    return count, last, checksum.hexdigest()


def check(directory: Path, file: str) -> Manifest:
    """The manifest of an archive whose file fits it. Raises ArchiveBroken, OSError."""
    manifest = Manifest(**json.loads((directory / f"{file}.manifest.json").read_text(encoding="utf-8")))
    count, last, checksum = read_back(directory / file)
    if (count, last.commit, last.prepare, checksum) != (
        manifest.count,
        manifest.last_commit_position,
        manifest.last_prepare_position,
        manifest.sha256,
    ):
        raise ArchiveBroken(f"{file} is not what its manifest says")
    return manifest


async def _pages(database: Database, boundary: Boundary, last: Position) -> AsyncIterator[bytes]:
    sql = _ROWS.replace("{events}", boundary.names.q_events).replace("{commands}", boundary.names.q_commands)
    after = -1
    while after < last.prepare:
        with database.guard():
            rows = await database.read.fetch(sql, after, last.prepare, _PAGE)
        if not rows:
            return
        after = rows[-1]["global_id"]
        yield "".join(row["line"] + "\n" for row in rows).encode()


def _settle(partial: Path, target: Path, manifest: Manifest) -> None:
    partial.replace(target)
    described = target.with_name(f"{target.name}.manifest.json")
    draft = described.with_name(f".{described.name}.partial")
    with draft.open("w", encoding="utf-8") as file:
        file.write(manifest.text())
        file.flush()
        os.fsync(file.fileno())
    draft.replace(described)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
