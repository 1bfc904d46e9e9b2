"""Looking after projections: where they stand, what is parked, replay, reset, rebuild, another number of partitions."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..boundary import Boundary
from ..events import Event
from ..position import Position
from .calling import call
from .checkpoints import AdministeredCheckpoints, ParkedEvent
from .config import ProcessorConfig
from .errors import NotParked, ProjectionError, VersionMismatch, reason_of
from .postgres import PostgresCheckpoints
from .processor import Lag, Undecoded, lag_of
from .projection import Projection
from .rebuild import Progress, Rebuild


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """Where a partition stands."""

    partition: int
    total: int
    position: Position
    handled: int
    updated_at: datetime.datetime
    lag: Lag


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a parked event: handled, or still parked for this reason."""

    event: ParkedEvent
    failure: str = ""


class Administration:
    """Looks after the projections of a boundary; workers may run meanwhile.

    ``checkpoints`` are what its processors have: an asyncpg pool, ``PostgresCheckpoints`` or ``FileCheckpoints`` (with
    their target, for replays).
    """

    def __init__(self, checkpoints: Any, boundary: Boundary) -> None:
        is_ready = hasattr(checkpoints, "keeper")
        self.checkpoints: AdministeredCheckpoints = checkpoints if is_ready else PostgresCheckpoints(checkpoints)
        self.boundary = boundary
        self._keeper = self.checkpoints.keeper(boundary.name)

    async def status(self, projection: Projection) -> list[PartitionStatus]:
        """Every partition with its lag; empty for a projection that was never started."""
        standings = await self._keeper.standings(projection)
        found = []
        for one in standings:
            lag = await lag_of(self.boundary, projection, one.position)
            found.append(PartitionStatus(one.partition, len(standings), one.position, one.handled, one.updated_at, lag))
        return found

    async def parked(self, projection: Projection) -> list[ParkedEvent]:
        """The events that were put aside, in the order of positions."""
        return await self._keeper.parked(projection)

    async def replay(self, projection: Projection, event_ids: Sequence[str] | None = None) -> AsyncIterator[Replayed]:
        """Handle parked events again, each in a transaction of its own: those of these ids, or all (None).

        They go in the order of positions. Where one fails again, those of the same key stay parked behind it. Raises
        NotParked for an id that is not parked, or that waits behind one that is not to be replayed; VersionMismatch
        where the read model is another version's.
        """
        wanted = await self._selected(projection, event_ids)
        failed: set[str] = set()
        for parked in wanted:
            if parked.key is not None and parked.key in failed:
                yield Replayed(parked, "waits behind a parked event")
                continue
            replayed = await self._replay(projection, parked)
            if replayed.failure and parked.key is not None:
                failed.add(parked.key)
            yield replayed

    async def discard(self, projection: Projection, event_ids: Sequence[str] | None = None) -> int:
        """Forget parked events without handling them; how many. Raises NotParked."""
        wanted = await self._selected(projection, event_ids, chain=False)
        await self._keeper.discard(projection, [parked.event_id for parked in wanted])
        return len(wanted)

    async def repartition(self, projection: Projection, config: ProcessorConfig) -> None:
        """Lay a projection out for ``config.total_partitions``; what is done stays done (in files, which are at least
        once, it begins at the least of the old checkpoints). Workers of the old layout end with PartitionMismatch."""
        await self._keeper.repartition(projection, config)

    async def reset(self, projection: Projection) -> None:
        """Empty the read model and begin with the first event again, in one transaction; what was parked is forgotten.

        Readers see an empty read model that fills again; ``rebuild`` spares them that. Workers that run go on from the
        beginning. Raises NotFound when it was never started, ProjectionError when it does not say how to.
        """
        await self._keeper.reset(projection)

    async def rebuild(
        self,
        projection: Projection,
        *,
        batch_size: int = 500,
        partitions: int = 1,
        on_progress: Callable[[Progress], None] | None = None,
        keep_previous: bool = False,
        config: ProcessorConfig | None = None,
    ) -> Progress:
        """Make the read model anew beside the present one, and put it in its place in one transaction (blue/green).

        The projection needs a ``schema`` in PostgreSQL; the new one is filled as ``<schema>__next``, by ``partitions``
        workers, each of which needs a connection of the pool. Readers see the old read model until the swap and the
        whole new one from then on. With ``keep_previous`` the old one stays as ``<schema>__previous``. A rebuild that
        was interrupted goes on where it was, with as many workers as it then has.
        """
        if not isinstance(self.checkpoints, PostgresCheckpoints):
            raise ProjectionError(
                f'projection "{projection.name}": a rebuild is for read models in PostgreSQL; begin again by `reset`,'
                " or fill another target under another name"
            )
        changes = {"batch_size": batch_size, "partition_key": 0, "total_partitions": partitions}
        settings = replace(config or ProcessorConfig(), **changes)  # type: ignore[arg-type]
        rebuild = Rebuild(self.checkpoints, self.boundary, projection, settings)
        return await rebuild.run(on_progress, keep_previous=keep_previous)

    # -- parked --------------------------------------------------------------------------------------------------

    async def _selected(
        self, projection: Projection, event_ids: Sequence[str] | None, *, chain: bool = True
    ) -> list[ParkedEvent]:
        parked = await self.parked(projection)
        if event_ids is None:
            return parked
        wanted = set(event_ids)
        if unknown := wanted - {one.event_id for one in parked}:
            raise NotParked(f'projection "{projection.name}": not parked: {", ".join(sorted(unknown))}')
        ahead: dict[str, str] = {}
        for one in parked:
            if one.key is None:
                continue
            if one.event_id not in wanted:
                ahead.setdefault(one.key, one.event_id)
            elif chain and one.key in ahead:
                raise NotParked(f"event {one.event_id} waits behind {ahead[one.key]}: replay or discard that one first")
        return [one for one in parked if one.event_id in wanted]

    async def _replay(self, projection: Projection, parked: ParkedEvent) -> Replayed:
        event = await self._event(parked)
        try:
            if event is None:
                raise ProjectionError("the boundary has no such event at its position any more")
            data = self.boundary.client.types.decode(event.event_type, event.raw_data, event.metadata)
            async with self._keeper.taking(projection, parked.event_id) as taken:
                if taken is not None:  # else somebody else has replayed it
                    await call(projection.handle, taken.tx, replace(event, data=data))
        except VersionMismatch:
            raise
        except Exception as error:
            failure = reason_of(error) if not isinstance(error, ProjectionError) else str(error)
            await self._keeper.failed_again(projection, parked.event_id, failure)
            return Replayed(parked, failure)
        return Replayed(parked)

    async def _event(self, parked: ParkedEvent) -> Event | None:
        raw = Boundary(self.boundary.client, self.boundary.name)
        raw._types = Undecoded()
        async for event in raw.read(start=parked.position, limit=1):
            if event.event_id == parked.event_id:
                return event
        return None
