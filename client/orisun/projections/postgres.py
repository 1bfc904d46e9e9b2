"""Checkpoints in the read model's own PostgreSQL: the handler's writes and the checkpoint are one transaction.

A batch locks its checkpoint's row first. Whoever finds the row elsewhere than it believed (another worker was faster,
the projection was reset or laid out anew) writes nothing and looks again; so the effect is exactly once, however many
workers believe that a partition is theirs.
"""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ..events import Event
from ..position import NOTHING, Position
from .calling import call
from .checkpoints import Assignment
from .config import ProcessorConfig
from .errors import PartitionMismatch, check_version, moved
from .partitions import HashPartitions, Layout, PartitionStrategy, relaid, still_needed
from .postgres_keeper import PostgresKeeper
from .projection import Projection
from .schemas import claim, use
from .tables import Tables, quoted


class PostgresCheckpoints:
    """Checkpoints in the database of an ``asyncpg`` pool. Each worker needs one connection, and one more to start."""

    def __init__(self, pool: Any, tables: Tables | None = None) -> None:
        self.pool, self.tables = pool, tables or Tables()
        self._made = False
        self._making = asyncio.Lock()
        #: parked keys by (projection, boundary, partition, generation), with the version that they are of
        self._parked: dict[tuple[str, str, int, int], tuple[int, frozenset[str]]] = {}

    async def assign(self, projection: Projection, boundary: str, config: ProcessorConfig) -> Assignment:
        """See ``Checkpoints``."""
        async with self.transaction() as tx:
            row = await self._taken_up(tx, projection, boundary, config)
            check_version(projection.name, row["version"], projection.version)
            await claim(tx, projection, boundary)
            if (row["total_partitions"], row["strategy"]) != (config.total_partitions, config.strategy.name):
                if not config.repartition:
                    raise PartitionMismatch(
                        f'projection "{projection.name}" is laid out for {row["total_partitions"]} partitions'
                        f" ({row['strategy']}), and this worker is one of {config.total_partitions}"
                        f" ({config.strategy.name}): start it with the same, or lay the projection out anew first"
                        f" (`repartition`; workers of the old layout then end)"
                    )
                row = await self.lay_out(tx, projection.name, boundary, config.total_partitions, config.strategy)
            positions = await self.positions(tx, projection.name, boundary)
            place = await self._place(tx, row)
        history = still_needed(tuple(map(Layout.of_json, json.loads(row["history"]))), min(positions))
        known = {one.name for one in strategies(config)}
        if unknown := {layout.strategy for layout in history} - known:
            raise PartitionMismatch(
                f'projection "{projection.name}": events were handled under the partition strategy'
                f" {', '.join(sorted(unknown))}: name it among former_strategies until all partitions have passed them"
            )
        partition = config.partition_key
        return Assignment(
            projection, boundary, partition, len(positions), row["generation"], positions[partition], history, place
        )

    @asynccontextmanager
    async def batch(self, assignment: Assignment, position: Position) -> AsyncIterator[PostgresBatch]:
        """See ``Checkpoints``."""
        async with self.transaction() as tx:
            row = await tx.fetchrow(
                "SELECT generation, commit_position, prepare_position, parked_version"
                f" FROM {self.tables.q(self.tables.checkpoints)}"
                " WHERE projection = $1 AND boundary = $2 AND partition = $3 FOR UPDATE",
                *self._key(assignment),
            )
            if row is None or tuple(row)[:3] != (assignment.generation, *position):
                raise moved(assignment.projection.name)
            keys = await self._parked_keys(tx, assignment, row["parked_version"])
            await use(tx, assignment.projection.schema)
            batch = PostgresBatch(self, tx, assignment, keys)
            yield batch
        if batch.parked:
            self._parked.pop((*self._key(assignment), assignment.generation), None)

    async def look(self, assignment: Assignment, position: Position) -> None:
        """See ``Checkpoints``."""
        async with self.transaction() as tx:
            row = await tx.fetchrow(
                f"SELECT generation, commit_position, prepare_position FROM {self.tables.q(self.tables.checkpoints)}"
                " WHERE projection = $1 AND boundary = $2 AND partition = $3",
                *self._key(assignment),
            )
        if row is None or row[0] != assignment.generation or Position(row[1], row[2]) < position:
            raise moved(assignment.projection.name)

    def keeper(self, boundary: str) -> PostgresKeeper:
        """See ``AdministeredCheckpoints``."""
        return PostgresKeeper(self, boundary)

    @property
    def most_connections(self) -> float:
        """How many there may be at a time."""
        return float(self.pool.get_max_size())

    def given(self, tx: Any) -> Any:
        """What ``handle``, ``setup`` and ``reset`` get for a transaction."""
        return tx

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A connection in a transaction; the tables exist."""
        async with self.pool.acquire() as connection:
            if not self._made:
                async with self._making:
                    await self._make_tables(connection)
            async with connection.transaction(isolation="read_committed"):
                yield connection

    async def setup(self, tx: Any, projection: Projection) -> None:
        """Make the read model's schema and tables."""
        if projection.schema:
            await tx.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(projection.schema)}")
        await use(tx, projection.schema)
        await call(projection.setup, self.given(tx))

    async def positions(self, tx: Any, projection: str, boundary: str, *, lock: bool = False) -> list[Position]:
        """The checkpoints of all partitions, in their order; locked, no worker commits until the transaction ends."""
        rows = await tx.fetch(
            f"SELECT commit_position, prepare_position FROM {self.tables.q(self.tables.checkpoints)}"
            f" WHERE projection = $1 AND boundary = $2 ORDER BY partition {'FOR UPDATE' if lock else ''}",
            projection,
            boundary,
        )
        return [Position(*row) for row in rows]

    async def lay_out(self, tx: Any, projection: str, boundary: str, total: int, strategy: PartitionStrategy) -> Any:
        """Another number of partitions: what is done stays done, workers of the old layout are fenced off. Returns the
        projection's row. Raises PartitionMismatch when there is no such projection."""
        row = await self.locked(tx, projection, boundary)
        if row is None:
            raise PartitionMismatch(f'there is no projection "{projection}" of boundary "{boundary}" yet: start it')
        current = Layout(row["strategy"], tuple(await self.positions(tx, projection, boundary, lock=True)))
        start, history = relaid([*map(Layout.of_json, json.loads(row["history"]))], current)
        written = json.dumps([layout.as_json() for layout in history])
        return await self.restart(tx, projection, boundary, [start] * total, strategy.name, history=written)

    async def restart(
        self,
        tx: Any,
        projection: str,
        boundary: str,
        positions: list[Position],
        strategy: str,
        *,
        history: str = "[]",
        version: int | None = None,
    ) -> Any:
        """Write new checkpoints, one for each partition, under a new generation. Returns the projection's row."""
        tables = self.tables
        row = await tx.fetchrow(
            f"UPDATE {tables.q(tables.projections)} SET generation = generation + 1, total_partitions = $3,"
            " strategy = $4, history = $5, version = coalesce($6, version)"
            " WHERE projection = $1 AND boundary = $2 RETURNING *",
            projection,
            boundary,
            len(positions),
            strategy,
            history,
            version,
        )
        await tx.execute(
            f"DELETE FROM {tables.q(tables.checkpoints)} WHERE projection = $1 AND boundary = $2", projection, boundary
        )
        await self._insert_checkpoints(tx, projection, boundary, row["generation"], positions)
        return row

    async def locked(self, tx: Any, projection: str, boundary: str) -> Any:
        """The projection's row, locked; None when there is none."""
        return await tx.fetchrow(
            f"SELECT * FROM {self.tables.q(self.tables.projections)}"
            " WHERE projection = $1 AND boundary = $2 FOR UPDATE",
            projection,
            boundary,
        )

    async def _taken_up(self, tx: Any, projection: Projection, boundary: str, config: ProcessorConfig) -> Any:
        row = await self.locked(tx, projection.name, boundary)
        if row is not None:
            return row
        made = await tx.fetchrow(
            f"INSERT INTO {self.tables.q(self.tables.projections)}"
            " (projection, boundary, version, total_partitions, strategy) VALUES ($1, $2, $3, $4, $5)"
            " ON CONFLICT DO NOTHING RETURNING *",
            projection.name,
            boundary,
            projection.version,
            config.total_partitions,
            config.strategy.name,
        )
        if made is None:  # another worker was faster
            return await self.locked(tx, projection.name, boundary)
        start = NOTHING if config.start_after is None else config.start_after
        positions = [start] * config.total_partitions
        await self._insert_checkpoints(tx, projection.name, boundary, made["generation"], positions)
        await self.setup(tx, projection)
        return made

    async def _place(self, tx: Any, row: Any) -> str:
        # the moment tells apart databases of several servers, the number those of one that were copied from each other
        oid = await tx.fetchval("SELECT oid::text FROM pg_catalog.pg_database WHERE datname = current_database()")
        moment = row["created_at"].astimezone(datetime.UTC).isoformat()
        return f"{oid} {self.tables.q(self.tables.projections)} {moment}"

    async def _insert_checkpoints(
        self, tx: Any, projection: str, boundary: str, generation: int, positions: list[Position]
    ) -> None:
        await tx.execute(
            f"INSERT INTO {self.tables.q(self.tables.checkpoints)}"
            " (projection, boundary, generation, partition, commit_position, prepare_position)"
            " SELECT $1, $2, $3, p.n - 1, p.c, p.p"
            " FROM unnest($4::bigint[], $5::bigint[]) WITH ORDINALITY AS p(c, p, n)",
            projection,
            boundary,
            generation,
            [position.commit for position in positions],
            [position.prepare for position in positions],
        )

    async def _parked_keys(self, tx: Any, assignment: Assignment, version: int) -> frozenset[str]:
        key = (*self._key(assignment), assignment.generation)
        known = self._parked.get(key)
        if known is None or known[0] != version:
            rows = await tx.fetch(
                f"SELECT DISTINCT event_key FROM {self.tables.q(self.tables.parked)}"
                " WHERE projection = $1 AND boundary = $2 AND event_key IS NOT NULL",
                assignment.projection.name,
                assignment.boundary,
            )
            known = self._parked[key] = version, frozenset(row[0] for row in rows)
        return known[1]

    async def _make_tables(self, connection: Any) -> None:
        if self._made:
            return
        names = [self.tables.q(name) for name in (self.tables.projections, self.tables.checkpoints, self.tables.parked)]
        there = "SELECT bool_and(to_regclass(name) IS NOT NULL) FROM unnest($1::text[]) AS name"
        if not await connection.fetchval(there, names):
            async with connection.transaction():
                # IF NOT EXISTS looks before it leaps: workers that start together would collide
                await connection.execute(
                    "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('orisun-projections'))"
                )
                await connection.execute(self.tables.ddl())
        self._made = True

    @staticmethod
    def _key(assignment: Assignment) -> tuple[str, str, int]:
        return assignment.projection.name, assignment.boundary, assignment.partition


class PostgresBatch:
    """A transaction of the read model."""

    def __init__(
        self, checkpoints: PostgresCheckpoints, tx: Any, assignment: Assignment, parked_keys: frozenset[str]
    ) -> None:
        self.tx, self.parked_keys = checkpoints.given(tx), parked_keys
        self.parked = 0
        self._tx = tx
        self._tables, self._assignment = checkpoints.tables, assignment

    async def park(self, event: Event, key: str | None, *, reason: str, attempts: int) -> None:
        """See ``Batch``."""
        self.parked += 1
        if key is not None:
            self.parked_keys |= {key}
        await self._tx.execute(
            f"INSERT INTO {self._tables.q(self._tables.parked)} (projection, boundary, event_id, event_key, event_type,"
            " commit_position, prepare_position, reason, attempts) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
            " ON CONFLICT DO NOTHING",
            self._assignment.projection.name,
            self._assignment.boundary,
            event.event_id,
            key,
            event.event_type,
            *event.position,
            reason,
            attempts,
        )

    async def advance(self, position: Position, handled: int) -> None:
        """See ``Batch``."""
        await self._tx.execute(
            f"UPDATE {self._tables.q(self._tables.checkpoints)} SET commit_position = $4, prepare_position = $5,"
            " handled = handled + $6, updated_at = now() WHERE projection = $1 AND boundary = $2 AND partition = $3",
            self._assignment.projection.name,
            self._assignment.boundary,
            self._assignment.partition,
            *position,
            handled,
        )


def strategies(config: ProcessorConfig) -> list[PartitionStrategy]:
    """Every strategy that the worker knows, the present one last."""
    return [HashPartitions(), *config.former_strategies, config.strategy]
