"""How far a boundary is published: a row beside its events, fenced by the epoch of the publisher's lease."""

from __future__ import annotations

from typing import NamedTuple

from ..core.position import NOTHING, Position
from ..storage.catalog import Boundary
from ..storage.database import Database


class Checkpoint(NamedTuple):
    """The last published event, and how many events were published up to it."""

    position: Position
    events: int


class Checkpoints:
    """The checkpoint of one boundary under one epoch."""

    def __init__(self, database: Database, boundary: Boundary, epoch: int) -> None:
        self._database, self._boundary, self._epoch = database, boundary, epoch
        table, events = boundary.names.q_published, boundary.names.q_events
        self._claim = f"""
            INSERT INTO {table} AS p (boundary, epoch) VALUES ($1, $2)
            ON CONFLICT (boundary) DO UPDATE SET epoch = $2 WHERE p.epoch <= $2
            RETURNING transaction_id, global_id, event_count"""
        # Losing this row to a crash only publishes some events again, so it does not wait for the disk. A setting
        # "of the transaction" is one of this statement here, and holds at its commit.
        self._store = f"""
            WITH quick AS (SELECT set_config('synchronous_commit', 'off', true))
            UPDATE {table} AS p
            SET transaction_id = $3, global_id = $4, event_count = $5, updated_at = clock_timestamp()
            FROM quick WHERE p.boundary = $1 AND p.epoch = $2"""
        self._count = f"SELECT count(*) FROM {events} WHERE global_id > $1 AND global_id <= $2"

    async def claim(self) -> Checkpoint | None:
        """Takes the checkpoint over under this epoch; None when a later one has it."""
        with self._database.guard():
            row = await self._database.admin.fetchrow(self._claim, self._boundary.name, self._epoch)
        return row and Checkpoint(Position(row[0], row[1]), row[2])

    async def store(self, checkpoint: Checkpoint) -> bool:
        """Stores the checkpoint; False when it is not of this epoch any more."""
        position, events = checkpoint
        with self._database.guard():
            status: str = await self._database.admin.execute(
                self._store, self._boundary.name, self._epoch, position.commit, position.prepare, events
            )
        return status.endswith(" 1")

    async def _count_between(self, after: Position, until: Position) -> int:
        """Events after a position until another, inclusive."""
        with self._database.guard():
            number: int = await self._database.read.fetchval(self._count, after.prepare, until.prepare)
        return number

    async def at(self, position: Position, known: Checkpoint) -> Checkpoint:
        """The checkpoint at another position of the same history."""
        if position == NOTHING:
            return Checkpoint(NOTHING, 0)
        if position >= known.position:
            return Checkpoint(position, known.events + await self._count_between(known.position, position))
        return Checkpoint(position, known.events - await self._count_between(position, known.position))
