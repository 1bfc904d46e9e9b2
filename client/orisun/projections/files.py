"""Checkpoints in files, for targets that are no PostgreSQL: at least once.

A batch is handled first and its checkpoint is written afterwards; whoever is killed in between handles the batch again.
So ``handle`` must bear a repetition: write by a key, or compare with the event's position or id.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from ..events import Event
from ..position import NOTHING, Position
from .checkpoints import Assignment
from .config import ProcessorConfig
from .errors import Fenced, PartitionMismatch, VersionMismatch
from .projection import Projection


class FileCheckpoints:
    """One small JSON file for each partition of each projection in a directory of this machine.

    ``target`` is what ``handle`` gets as ``tx``: the client of a search index, of a message broker, an HTTP session.
    A file is replaced in one step and synced, so it holds a whole checkpoint at any time.
    """

    def __init__(self, directory: Path | str, target: Any = None) -> None:
        self._directory, self.target = Path(directory), target
        self._locks: dict[Path, IO[str]] = {}

    async def assign(self, projection: Projection, boundary: str, config: ProcessorConfig) -> Assignment:
        """See ``Checkpoints``. Another number of partitions begins at the least of the old checkpoints, so that some
        events are handled again."""
        return await asyncio.to_thread(self._assign, projection, boundary, config)

    @asynccontextmanager
    async def batch(self, assignment: Assignment, position: Position) -> AsyncIterator[FileBatch]:
        """See ``Checkpoints``."""
        path = self._path(assignment.projection.name, assignment.boundary, assignment.partition)
        kept = await asyncio.to_thread(_read, path)
        if (kept["total"], tuple(kept["position"])) != (assignment.total, tuple(position)):
            raise Fenced(f'the checkpoint of projection "{assignment.projection.name}" was moved by somebody else')
        batch = FileBatch(self.target, kept)
        yield batch
        await asyncio.to_thread(_write, path, batch.kept)

    def _assign(self, projection: Projection, boundary: str, config: ProcessorConfig) -> Assignment:
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._path(projection.name, boundary, config.partition_key)
        start = NOTHING if config.start_after is None else config.start_after
        with (self._directory / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            others = {other: _read(other) for other in self._directory.glob(self._pattern(projection.name, boundary))}
            stale = {other: kept for other, kept in others.items() if kept["total"] != config.total_partitions}
            if stale and not config.repartition:
                total = next(iter(stale.values()))["total"]
                raise PartitionMismatch(
                    f'projection "{projection.name}" is laid out for {total} partitions, and this worker is one of'
                    f" {config.total_partitions}: start it with the same number, or with repartition=True"
                )
            if stale:
                start = min(Position(*kept["position"]) for kept in stale.values())
                parked = [entry for kept in stale.values() for entry in kept["parked"]]
                version = next(iter(stale.values()))["version"]
                for other in stale:
                    other.unlink()
                for number in range(config.total_partitions):
                    own = [one for one in parked if self._partition(one["key"], config) == number]
                    new = self._kept(config.total_partitions, start, version) | {"parked": own}
                    _write(self._path(projection.name, boundary, number), new)
            if not path.exists():
                _write(path, self._kept(config.total_partitions, start, projection.version))
            kept = _read(path)
        if kept["version"] != projection.version:
            raise VersionMismatch(
                f'projection "{projection.name}": its checkpoint is of version {kept["version"]}, and this worker of'
                f" version {projection.version}: empty the target, and delete {path}"
            )
        position = Position(*kept["position"])
        return Assignment(projection, boundary, config.partition_key, config.total_partitions, 1, position)

    @staticmethod
    def _partition(key: str | None, config: ProcessorConfig) -> int:
        return config.strategy.partition(key, config.total_partitions)

    @staticmethod
    def _kept(total: int, position: Position, version: int) -> dict[str, Any]:
        return {"total": total, "position": list(position), "version": version, "parked": []}

    def _pattern(self, projection: str, boundary: str) -> str:
        return f"{quote(projection, safe='')}@{quote(boundary, safe='')}.*.json"

    def _path(self, projection: str, boundary: str, partition: int) -> Path:
        return self._directory / self._pattern(projection, boundary).replace("*", str(partition))


class FileBatch:
    """What is written once the batch is done."""

    def __init__(self, target: Any, kept: dict[str, Any]) -> None:
        self.tx, self.kept = target, kept
        self.parked_keys = frozenset(entry["key"] for entry in kept["parked"] if entry["key"] is not None)

    async def park(self, event: Event, key: str | None, *, reason: str, attempts: int) -> None:
        """See ``Batch``. The entries stand in the checkpoint's file, under ``parked``."""
        if key is not None:
            self.parked_keys |= {key}
        entry = {"event_id": event.event_id, "event_type": event.event_type, "position": list(event.position)}
        self.kept["parked"].append(entry | {"key": key, "reason": reason, "attempts": attempts})

    async def advance(self, position: Position, handled: int) -> None:
        """See ``Batch``."""
        self.kept["position"] = list(position)


def _read(path: Path) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Fenced(f"the checkpoint {path.name} was removed by somebody else") from None
    return kept


def _write(path: Path, kept: dict[str, Any]) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}.new")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(kept, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
