"""Looking after projections: where they stand, what is parked, replay, reset, rebuild, another number of partitions."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..boundary import Boundary
from ..errors import NotFound
from ..events import Event
from ..position import NOTHING, Position
from .config import ProcessorConfig
from .errors import NotParked, ProjectionError, reason_of
from .postgres import PostgresCheckpoints
from .processor import Lag, lag_of
from .projection import Projection
from .rebuild import Progress, Rebuild
from .tables import quoted


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
class ParkedEvent:
    """An event that was put aside. ``attempts`` is 0 where it waits behind another one of its key."""

    event_id: str
    event_type: str
    key: str | None
    position: Position
    #: What was raised, and where.
    reason: str
    attempts: int
    parked_at: datetime.datetime


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a parked event: handled, or still parked for this reason."""

    event: ParkedEvent
    failure: str = ""


class Administration:
    """Looks after the projections of a boundary whose checkpoints are in PostgreSQL; workers may run meanwhile."""

    def __init__(self, checkpoints: PostgresCheckpoints | Any, boundary: Boundary) -> None:
        is_ready = isinstance(checkpoints, PostgresCheckpoints)
        self.checkpoints = checkpoints if is_ready else PostgresCheckpoints(checkpoints)
        self.boundary = boundary

    async def status(self, projection: Projection) -> list[PartitionStatus]:
        """Every partition with its lag; empty for a projection that was never started."""
        async with self.checkpoints.transaction() as tx:
            rows = await tx.fetch(
                "SELECT partition, commit_position, prepare_position, handled, updated_at FROM"
                f" {self.checkpoints.tables.q(self.checkpoints.tables.checkpoints)}"
                " WHERE projection = $1 AND boundary = $2 ORDER BY partition",
                projection.name,
                self.boundary.name,
            )
        found = []
        for partition, commit, prepare, handled, updated_at in rows:
            position = Position(commit, prepare)
            lag = await lag_of(self.boundary, projection, position)
            found.append(PartitionStatus(partition, len(rows), position, handled, updated_at, lag))
        return found

    async def parked(self, projection: Projection) -> list[ParkedEvent]:
        """The events that were put aside, in the order of positions."""
        async with self.checkpoints.transaction() as tx:
            return await self._parked(tx, projection)

    async def replay(self, projection: Projection, event_ids: Sequence[str] | None = None) -> AsyncIterator[Replayed]:
        """Handle parked events again, each in a transaction of its own: those of these ids, or all (None).

        They go in the order of positions. Where one fails again, those of the same key stay parked behind it. Raises
        NotParked for an id that is not parked, or that waits behind one that is not to be replayed.
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
        async with self.checkpoints.transaction() as tx:
            for parked in wanted:
                await self._forget(tx, projection, parked)
        return len(wanted)

    async def repartition(self, projection: Projection, config: ProcessorConfig) -> None:
        """Lay a projection out for ``config.total_partitions``; what is done stays done. Workers of the old layout end
        with PartitionMismatch."""
        async with self.checkpoints.transaction() as tx:
            await self.checkpoints.lay_out(
                tx, projection.name, self.boundary.name, config.total_partitions, config.strategy
            )

    async def reset(self, projection: Projection) -> None:
        """Empty the read model and begin with the first event again, in one transaction; what was parked is forgotten.

        Readers see an empty read model that fills again; ``rebuild`` spares them that. Workers that run go on from the
        beginning. Raises NotFound when it was never started, NotImplementedError when it does not say how to.
        """
        store, name = self.checkpoints, self.boundary.name
        async with store.transaction() as tx:
            row = await store.locked(tx, projection.name, name)
            if row is None:
                raise NotFound(f'projection "{projection.name}" of boundary "{name}" was never started')
            await store.positions(tx, projection.name, name, lock=True)
            if projection.schema:
                await tx.execute(f"DROP SCHEMA IF EXISTS {quoted(projection.schema)} CASCADE")
                await store.setup(tx, projection)
            else:
                await projection.reset(tx)
            await tx.execute(
                f"DELETE FROM {store.tables.q(store.tables.parked)} WHERE projection = $1 AND boundary = $2",
                projection.name,
                name,
            )
            positions = [NOTHING] * row["total_partitions"]
            await store.restart(tx, projection.name, name, positions, row["strategy"], version=projection.version)

    async def rebuild(
        self,
        projection: Projection,
        *,
        batch_size: int = 500,
        on_progress: Callable[[Progress], None] | None = None,
        keep_previous: bool = False,
        config: ProcessorConfig | None = None,
    ) -> Progress:
        """Make the read model anew beside the present one, and put it in its place in one transaction (blue/green).

        The projection needs a ``schema``; the new one is filled as ``<schema>__next``. Readers see the old read model
        until the swap and the whole new one from then on. With ``keep_previous`` the old one stays as
        ``<schema>__previous``. A rebuild that was interrupted goes on where it was.
        """
        settings = replace(config or ProcessorConfig(), batch_size=batch_size, partition_key=0, total_partitions=1)
        rebuild = Rebuild(self.checkpoints, self.boundary, projection, settings)
        return await rebuild.run(on_progress, keep_previous=keep_previous)

    # -- parked --------------------------------------------------------------------------------------------------

    async def _parked(self, tx: Any, projection: Projection) -> list[ParkedEvent]:
        rows = await tx.fetch(
            "SELECT event_id, event_type, event_key, commit_position, prepare_position, reason, attempts, parked_at"
            f" FROM {self.checkpoints.tables.q(self.checkpoints.tables.parked)}"
            " WHERE projection = $1 AND boundary = $2 ORDER BY commit_position, prepare_position",
            projection.name,
            self.boundary.name,
        )
        return [
            ParkedEvent(event_id, event_type, key, Position(commit, prepare), reason, attempts, parked_at)
            for event_id, event_type, key, commit, prepare, reason, attempts, parked_at in rows
        ]

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
            async with self.checkpoints.transaction() as tx:
                if not await self._forget(tx, projection, parked):
                    return Replayed(parked)  # somebody else has replayed it
                await self.checkpoints.use_schema(tx, projection.schema)
                await projection.handle(tx, replace(event, data=data))
        except Exception as error:
            failure = reason_of(error) if not isinstance(error, ProjectionError) else str(error)
            async with self.checkpoints.transaction() as tx:
                await tx.execute(
                    f"UPDATE {self.checkpoints.tables.q(self.checkpoints.tables.parked)}"
                    " SET attempts = attempts + 1, reason = $4"
                    " WHERE projection = $1 AND boundary = $2 AND event_id = $3",
                    projection.name,
                    self.boundary.name,
                    parked.event_id,
                    failure,
                )
            return Replayed(parked, failure)
        return Replayed(parked)

    async def _event(self, parked: ParkedEvent) -> Event | None:
        from .processor import Undecoded

        raw = Boundary(self.boundary.client, self.boundary.name)
        raw._types = Undecoded()
        async for event in raw.read(start=parked.position, limit=1):
            if event.event_id == parked.event_id:
                return event
        return None

    async def _forget(self, tx: Any, projection: Projection, parked: ParkedEvent) -> bool:
        """Take an event off the list; whether it was there. Workers learn of it by the version of their checkpoint,
        whose lock they and this share: while this runs, none of them parks another event of the key."""
        tables = self.checkpoints.tables
        await self.checkpoints.locked(tx, projection.name, self.boundary.name)
        await tx.execute(
            f"UPDATE {tables.q(tables.checkpoints)} SET parked_version = parked_version + 1"
            " WHERE projection = $1 AND boundary = $2",
            projection.name,
            self.boundary.name,
        )
        return bool(
            await tx.fetchval(
                f"DELETE FROM {tables.q(tables.parked)} WHERE projection = $1 AND boundary = $2 AND event_id = $3"
                " RETURNING true",
                projection.name,
                self.boundary.name,
                parked.event_id,
            )
        )
