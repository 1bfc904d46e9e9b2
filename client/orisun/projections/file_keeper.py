"""Looking after projections whose checkpoints are in files."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ..errors import NotFound
from ..position import NOTHING, Position
from .calling import call
from .checkpoints import ParkedEvent, Standing, Taken
from .config import ProcessorConfig
from .errors import check_version
from .kept_files import new_kept, read, save
from .projection import Projection

if TYPE_CHECKING:
    from .files import FileCheckpoints

_LONG_AGO = datetime.datetime.fromtimestamp(0, datetime.UTC).isoformat()


class FileKeeper:
    """See ``Keeper``. What is handled again and taken off the list afterwards is handled at least once too."""

    def __init__(self, checkpoints: FileCheckpoints, boundary: str) -> None:
        self._files, self._boundary = checkpoints, boundary

    async def standings(self, projection: Projection) -> list[Standing]:
        """See ``Keeper``."""
        found = await self._found(projection)
        return [
            Standing(number, Position(*kept["position"]), kept.get("handled", 0), _time(kept.get("updated_at")))
            for number, kept in sorted(found.items())
        ]

    async def parked(self, projection: Projection) -> list[ParkedEvent]:
        """See ``Keeper``."""
        entries = [entry for kept in (await self._found(projection)).values() for entry in kept["parked"]]
        parked = [
            ParkedEvent(
                entry["event_id"], entry["event_type"], entry["key"], Position(*entry["position"]), entry["reason"],
                entry["attempts"], _time(entry.get("parked_at")),
            )
            for entry in entries
        ]  # fmt: skip
        return sorted(parked, key=lambda one: one.position)

    @asynccontextmanager
    async def taking(self, projection: Projection, event_id: str) -> AsyncIterator[Taken | None]:
        """See ``Keeper``."""
        async with self._partition_of(projection, event_id) as kept:
            if kept is None:
                yield None
                return
            check_version(projection.name, kept["version"], projection.version)
            yield Taken(self._files.target)
            _forget(kept, event_id)

    async def failed_again(self, projection: Projection, event_id: str, reason: str) -> None:
        """See ``Keeper``."""
        async with self._partition_of(projection, event_id) as kept:
            for entry in kept["parked"] if kept else ():
                if entry["event_id"] == event_id:
                    entry |= {"attempts": entry["attempts"] + 1, "reason": reason}

    async def discard(self, projection: Projection, event_ids: Sequence[str]) -> None:
        """See ``Keeper``."""
        for event_id in event_ids:
            async with self._partition_of(projection, event_id) as kept:
                if kept is not None:
                    _forget(kept, event_id)

    async def repartition(self, projection: Projection, config: ProcessorConfig) -> None:
        """See ``Keeper``."""
        await self._files.lay_out(projection.name, self._boundary, config)

    async def reset(self, projection: Projection) -> None:
        """See ``Keeper``."""
        name, boundary = projection.name, self._boundary
        async with self._files.layout_locked(name, boundary):
            numbers = (await self._found(projection)).keys()
            if not numbers:
                raise NotFound(f'projection "{name}" of boundary "{boundary}" was never started')
            async with self._files.locked(name, boundary, numbers):
                await call(projection.reset, self._files.target)
                for number in numbers:
                    kept = new_kept(len(numbers), NOTHING, projection.version)
                    await save(self._files.path(name, boundary, number), kept)

    @asynccontextmanager
    async def _partition_of(self, projection: Projection, event_id: str) -> AsyncIterator[dict[str, Any] | None]:
        """What is kept of the partition that has parked the event, locked, and written down afterwards; None where no
        partition has."""
        name, boundary = projection.name, self._boundary
        async with self._files.layout_locked(name, boundary):
            for number, kept in (await self._found(projection)).items():
                if not _holds(kept, event_id):
                    continue
                async with self._files.locked(name, boundary, [number]):
                    path = self._files.path(name, boundary, number)
                    current = await asyncio.to_thread(read, path)
                    if _holds(current, event_id):
                        yield current
                        await save(path, current)
                        return
            yield None

    async def _found(self, projection: Projection) -> dict[int, dict[str, Any]]:
        return await asyncio.to_thread(self._files.found, projection.name, self._boundary)


def _forget(kept: dict[str, Any], event_id: str) -> None:
    kept["parked"] = [entry for entry in kept["parked"] if entry["event_id"] != event_id]


def _holds(kept: dict[str, Any], event_id: str) -> bool:
    return any(entry["event_id"] == event_id for entry in kept["parked"])


def _time(text: str | None) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text or _LONG_AGO)
