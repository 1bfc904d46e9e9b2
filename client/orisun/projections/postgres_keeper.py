"""Looking after projections whose checkpoints are in PostgreSQL; each step is one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ..errors import NotFound
from ..position import NOTHING, Position
from .calling import call
from .checkpoints import ParkedEvent, Standing, Taken
from .config import ProcessorConfig
from .errors import check_version
from .projection import Projection
from .schemas import check_own, claim, use
from .tables import quoted

if TYPE_CHECKING:
    from .postgres import PostgresCheckpoints


class PostgresKeeper:
    """See ``Keeper``."""

    def __init__(self, checkpoints: PostgresCheckpoints, boundary: str) -> None:
        self._store, self._boundary = checkpoints, boundary
        tables = checkpoints.tables
        self._checkpoints, self._parked = tables.q(tables.checkpoints), tables.q(tables.parked)

    async def standings(self, projection: Projection) -> list[Standing]:
        """See ``Keeper``."""
        async with self._store.transaction() as tx:
            rows = await tx.fetch(
                "SELECT partition, commit_position, prepare_position, handled, updated_at"
                f" FROM {self._checkpoints} WHERE projection = $1 AND boundary = $2 ORDER BY partition",
                projection.name,
                self._boundary,
            )
        return [
            Standing(partition, Position(commit, prepare), handled, updated_at)
            for partition, commit, prepare, handled, updated_at in rows
        ]

    async def parked(self, projection: Projection) -> list[ParkedEvent]:
        """See ``Keeper``."""
        async with self._store.transaction() as tx:
            rows = await tx.fetch(
                "SELECT event_id, event_type, event_key, commit_position, prepare_position, reason, attempts, parked_at"
                f" FROM {self._parked} WHERE projection = $1 AND boundary = $2"
                " ORDER BY commit_position, prepare_position",
                projection.name,
                self._boundary,
            )
        return [
            ParkedEvent(event_id, event_type, key, Position(commit, prepare), reason, attempts, parked_at)
            for event_id, event_type, key, commit, prepare, reason, attempts, parked_at in rows
        ]

    @asynccontextmanager
    async def taking(self, projection: Projection, event_id: str) -> AsyncIterator[Taken | None]:
        """See ``Keeper``."""
        async with self._store.transaction() as tx:
            row = await self._store.locked(tx, projection.name, self._boundary)
            if row is not None:
                check_version(projection.name, row["version"], projection.version)
            if not await self._forget(tx, projection, event_id):
                yield None
                return
            await use(tx, projection.schema)
            yield Taken(self._store.given(tx))

    async def failed_again(self, projection: Projection, event_id: str, reason: str) -> None:
        """See ``Keeper``."""
        async with self._store.transaction() as tx:
            await tx.execute(
                f"UPDATE {self._parked} SET attempts = attempts + 1, reason = $4"
                " WHERE projection = $1 AND boundary = $2 AND event_id = $3",
                projection.name,
                self._boundary,
                event_id,
                reason,
            )

    async def discard(self, projection: Projection, event_ids: Sequence[str]) -> None:
        """See ``Keeper``."""
        async with self._store.transaction() as tx:
            for event_id in event_ids:
                await self._forget(tx, projection, event_id)

    async def repartition(self, projection: Projection, config: ProcessorConfig) -> None:
        """See ``Keeper``. What is done stays done."""
        async with self._store.transaction() as tx:
            await self._store.lay_out(tx, projection.name, self._boundary, config.total_partitions, config.strategy)

    async def reset(self, projection: Projection) -> None:
        """See ``Keeper``."""
        store, name, boundary = self._store, projection.name, self._boundary
        async with store.transaction() as tx:
            row = await store.locked(tx, name, boundary)
            if row is None:
                raise NotFound(f'projection "{name}" of boundary "{boundary}" was never started')
            await store.positions(tx, name, boundary, lock=True)
            if projection.schema:
                await check_own(tx, projection, boundary, store.tables)
                await tx.execute(f"DROP SCHEMA IF EXISTS {quoted(projection.schema)} CASCADE")
                await store.setup(tx, projection)
                await claim(tx, projection, boundary)
            else:
                await call(projection.reset, store.given(tx))
            await tx.execute(f"DELETE FROM {self._parked} WHERE projection = $1 AND boundary = $2", name, boundary)
            positions = [NOTHING] * row["total_partitions"]
            await store.restart(tx, name, boundary, positions, row["strategy"], version=projection.version)

    async def _forget(self, tx: Any, projection: Projection, event_id: str) -> bool:
        """Take an event off the list; whether it was there. Workers learn of it by the version of their checkpoint,
        whose lock they and this share: while this runs, none of them parks another event of the key."""
        await self._store.locked(tx, projection.name, self._boundary)
        await tx.execute(
            f"UPDATE {self._checkpoints} SET parked_version = parked_version + 1"
            " WHERE projection = $1 AND boundary = $2",
            projection.name,
            self._boundary,
        )
        return bool(
            await tx.fetchval(
                f"DELETE FROM {self._parked} WHERE projection = $1 AND boundary = $2 AND event_id = $3 RETURNING true",
                projection.name,
                self._boundary,
                event_id,
            )
        )
