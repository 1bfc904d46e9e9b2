"""Checkpoints in files, for targets that are no PostgreSQL: at least once.

A batch is handled first and its checkpoint is written afterwards; whoever is killed in between handles the batch again.
So ``handle`` must bear a repetition: write by a key, or compare with the event's position or id.

A partition's file is locked while a batch of it is handled, so that two workers of one machine, a replay from the
command line and a change of the layout take turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..events import Event
from ..position import NOTHING, Position
from .checkpoints import Assignment
from .config import ProcessorConfig
from .errors import PartitionMismatch, ProjectionError, check_version, moved
from .file_keeper import FileKeeper
from .kept_files import locked, new_kept, now, place, read, save
from .partitions import partition_of
from .projection import Projection


class FileCheckpoints:
    """One small JSON file for each partition of each projection in a directory of this machine.

    ``target`` is what ``handle`` gets as ``tx``: the client of a search index, of a message broker, an HTTP session.
    A file is replaced in one step and synced, so it holds a whole checkpoint at any time.
    """

    def __init__(self, directory: Path | str, target: Any = None) -> None:
        self._directory, self.target = Path(directory), target
        self._is_usable = False

    async def assign(self, projection: Projection, boundary: str, config: ProcessorConfig) -> Assignment:
        """See ``Checkpoints``. Another number of partitions begins at the least of the old checkpoints, so that some
        events are handled again. Raises ProjectionError where the directory cannot be used from the start."""
        try:
            assignment = await self._assigned(projection, boundary, config)
            async with locked(self._directory / "place.lock"):
                assignment = replace(assignment, place=await asyncio.to_thread(place, self._directory))
        except OSError as error:
            if self._is_usable:
                raise  # it was, and may be so again: a disk that is full or away
            raise ProjectionError(
                f'projection "{projection.name}": checkpoints cannot be kept in {self._directory}:'
                f" {error.strerror or error}"
            ) from error
        self._is_usable = True
        return assignment

    async def _assigned(self, projection: Projection, boundary: str, config: ProcessorConfig) -> Assignment:
        async with self.layout_locked(projection.name, boundary):
            found = await asyncio.to_thread(self.found, projection.name, boundary)
            if others := {kept["total"] for kept in found.values()} - {config.total_partitions}:
                if not config.repartition:
                    raise PartitionMismatch(
                        f'projection "{projection.name}" is laid out for {max(others)} partitions, and this worker is'
                        f" one of {config.total_partitions}: start it with the same number, or lay the projection out"
                        " anew first (`repartition`)"
                    )
                found = await self._laid_out(projection.name, boundary, config)
            # all of them at once: one that was never started must not look done when the layout changes
            start = NOTHING if config.start_after is None else config.start_after
            for number in set(range(config.total_partitions)) - found.keys():
                found[number] = new_kept(config.total_partitions, start, projection.version)
                await save(self.path(projection.name, boundary, number), found[number])
        kept = found[config.partition_key]
        check_version(projection.name, kept["version"], projection.version)
        position = Position(*kept["position"])
        return Assignment(projection, boundary, config.partition_key, config.total_partitions, 1, position)

    @asynccontextmanager
    async def batch(self, assignment: Assignment, position: Position) -> AsyncIterator[FileBatch]:
        """See ``Checkpoints``."""
        name, boundary, partition = assignment.projection.name, assignment.boundary, assignment.partition
        async with self.locked(name, boundary, [partition]):
            path = self.path(name, boundary, partition)
            kept = await asyncio.to_thread(read, path)
            if (kept["total"], tuple(kept["position"])) != (assignment.total, tuple(position)):
                raise moved(name)
            batch = FileBatch(self.target, kept)
            yield batch
            await save(path, batch.kept)

    async def look(self, assignment: Assignment, position: Position) -> None:
        """See ``Checkpoints``."""
        name = assignment.projection.name
        kept = await asyncio.to_thread(read, self.path(name, assignment.boundary, assignment.partition))
        if kept["total"] != assignment.total or Position(*kept["position"]) < position:
            raise moved(name)

    def keeper(self, boundary: str) -> FileKeeper:
        """See ``AdministeredCheckpoints``."""
        return FileKeeper(self, boundary)

    async def lay_out(self, projection: str, boundary: str, config: ProcessorConfig) -> None:
        """Another number of partitions; workers of the old layout are fenced off. Raises PartitionMismatch when there
        is no such projection."""
        async with self.layout_locked(projection, boundary):
            if not await asyncio.to_thread(self.found, projection, boundary):
                raise PartitionMismatch(f'there is no projection "{projection}" of boundary "{boundary}" yet: start it')
            await self._laid_out(projection, boundary, config)

    def found(self, projection: str, boundary: str) -> dict[int, dict[str, Any]]:
        """What is kept of each partition."""
        pattern = self._pattern(projection, boundary)
        return {int(path.name.split(".")[-2]): read(path) for path in sorted(self._directory.glob(pattern))}

    def path(self, projection: str, boundary: str, partition: int) -> Path:
        """The file of a partition."""
        return self._directory / self._pattern(projection, boundary).replace("*", str(partition))

    @asynccontextmanager
    async def layout_locked(self, projection: str, boundary: str) -> AsyncIterator[None]:
        """Nobody else lays the projection out meanwhile; taken before the locks of partitions."""
        async with locked(self.path(projection, boundary, 0).with_suffix("").with_suffix(".lock")):
            yield

    @asynccontextmanager
    async def locked(self, projection: str, boundary: str, partitions: Iterable[int]) -> AsyncIterator[None]:
        """No batch of these partitions is under way meanwhile."""
        async with AsyncExitStack() as stack:
            for number in sorted(partitions):
                await stack.enter_async_context(locked(self.path(projection, boundary, number).with_suffix(".lock")))
            yield

    async def _laid_out(self, projection: str, boundary: str, config: ProcessorConfig) -> dict[int, dict[str, Any]]:
        """The new layout's files. One that was interrupted is taken up again: until the last old file is gone, the
        layout is another one, and new files repeat what is in the old ones."""
        total, strategy = config.total_partitions, config.strategy
        old = await asyncio.to_thread(self.found, projection, boundary)
        async with self.locked(projection, boundary, old.keys() | set(range(total))):
            old = await asyncio.to_thread(self.found, projection, boundary)
            start = min(Position(*kept["position"]) for kept in old.values())
            version = next(iter(old.values()))["version"]
            parked = {entry["event_id"]: entry for kept in old.values() for entry in kept["parked"]}
            made = {}
            for number in range(total):
                own = [entry for entry in parked.values() if partition_of(strategy, entry["key"], total) == number]
                made[number] = new_kept(total, start, version) | {"parked": own}
                await save(self.path(projection, boundary, number), made[number])
            for number in old.keys() - made.keys():
                self.path(projection, boundary, number).unlink()
        return made

    def _pattern(self, projection: str, boundary: str) -> str:
        return f"{quote(projection, safe='')}@{quote(boundary, safe='')}.*.json"


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
        self.kept["parked"].append(entry | {"key": key, "reason": reason, "attempts": attempts, "parked_at": now()})

    async def advance(self, position: Position, handled: int) -> None:
        """See ``Batch``."""
        self.kept |= {"position": list(position), "handled": self.kept.get("handled", 0) + handled}
