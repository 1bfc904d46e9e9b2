"""Blue and green: a read model is made anew beside the one in use, then both change places in one transaction."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..boundary import Boundary
from ..events import Event
from ..position import NOTHING, Position
from .calling import call
from .config import BatchReport, ProcessorConfig
from .errors import ProjectionError
from .partitions import Layout, relaid
from .postgres import PostgresCheckpoints
from .processor import Processor, last_wanted
from .projection import NEXT, Projection, check_name
from .schemas import check_own
from .tables import quoted

#: Numbers of the boundary that may be left when the swap begins, which locks the workers out.
_LEFT = 200
#: Connections beside those of the workers: for the swap, and for a look at the checkpoints meanwhile.
_CONNECTIONS = 2


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rebuild is, in numbers of the boundary."""

    done: int
    total: int
    #: Events handled, those a second, and the seconds that are left at this rate (None: not known yet).
    handled: int
    per_second: float
    seconds_left: float | None

    @property
    def percent(self) -> float:
        """Of the whole, from 0 to 100."""
        return 100.0 * self.done / self.total if self.total else 100.0


class _Next(Projection):
    """The projection under another name and schema."""

    def __init__(self, projection: Projection) -> None:
        self._projection = projection
        self.name, self.schema = f"{projection.name}{NEXT}", f"{projection.schema}__next"
        self.version, self.query = projection.version, projection.query

    async def handle(self, tx: Any, event: Event) -> None:
        await call(self._projection.handle, tx, event)

    async def setup(self, tx: Any) -> None:
        await call(self._projection.setup, tx)

    def key_of(self, event: Event) -> str | None:
        return self._projection.key_of(event)


class Rebuild:
    """One rebuild of one projection; see ``Administration.rebuild``."""

    def __init__(
        self, checkpoints: PostgresCheckpoints, boundary: Boundary, projection: Projection, config: ProcessorConfig
    ) -> None:
        check_name(projection)
        if not projection.schema:
            raise ProjectionError(
                f'projection "{projection.name}" has no schema: a rebuild fills another schema and then gives it the'
                " name of the present one; use reset, or give the projection a schema"
            )
        needed = config.total_partitions + _CONNECTIONS
        if checkpoints.most_connections < needed:
            raise ProjectionError(
                f"this rebuild needs a pool of {needed} connections, and this one has"
                f" {checkpoints.most_connections:.0f}: while the swap holds one, the last events need others"
            )
        self._store, self._boundary, self._projection = checkpoints, boundary, projection
        self._next, self._config = _Next(projection), config
        self._began, self._handled, self._reached = time.monotonic(), 0, NOTHING

    async def run(self, on_progress: Callable[[Progress], None] | None, *, keep_previous: bool) -> Progress:
        """Fill, then swap. Raises ProjectionStopped when an event cannot be handled."""
        # one that was interrupted goes on, unless it is another version's
        await self._drop_other_version()
        await self._store.assign(self._next, self._boundary.name, replace(self._config, repartition=True))
        while (head := await last_wanted(self._boundary, self._next)).prepare - (
            await self._position()
        ).prepare > _LEFT:
            await self._fill(head, head, on_progress)
        await self._swap(on_progress, keep_previous)
        end = max(await self._position(self._projection), head)
        done = self._progress(end, end)
        if on_progress is not None:
            on_progress(done)
        return done

    async def _fill(self, target: Position, head: Position, on_progress: Callable[[Progress], None] | None) -> None:
        """Project until every partition has come to ``target``, the position of an event that is wanted."""
        if await self._position() >= target:
            return

        def on_batch(report: BatchReport) -> None:
            self._handled += report.handled
            # those that are not at work yet stand at NOTHING
            self._reached = max(self._reached, min(one.stats.position for one in processors))
            if on_progress is not None:
                on_progress(self._progress(self._reached, head))

        settings = [
            replace(self._config, partition_key=number, on_batch=on_batch)
            for number in range(self._config.total_partitions)
        ]
        processors = [Processor(self._store, self._boundary, config) for config in settings]
        work = [asyncio.create_task(one.run(self._next)) for one in processors]
        there: asyncio.Future[Any] = asyncio.gather(
            *(one.caught_up(self._next, target) for one in processors), return_exceptions=True
        )
        try:
            # a worker that fails ends the rebuild, and the others with it
            first: list[asyncio.Future[Any]] = [*work, there]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            for processor in processors:
                processor.stop()
            await asyncio.wait(work)
            for task in work:
                task.result()
        finally:
            there.cancel()
            for task in work:
                task.cancel()
            await asyncio.gather(*work, there, return_exceptions=True)

    async def _swap(self, on_progress: Callable[[Progress], None] | None, keep_previous: bool) -> None:
        """Lock the workers out, come as far as they had, so that no reader goes back in time, and change places."""
        store, name, boundary = self._store, self._projection.name, self._boundary.name
        async with store.transaction() as tx:
            row = await store.locked(tx, name, boundary)
            live = await store.positions(tx, name, boundary, lock=True)
            if row is not None:
                # partitions that were laid out anew stand where the last of the old ones was
                history = map(Layout.of_json, json.loads(row["history"]))
                live += [position for layout in history for position in layout.positions]
            target = await last_wanted(self._boundary, self._next, max(live) if live else None)
            await self._fill(target, target, on_progress)
            await check_own(tx, self._projection, boundary, store.tables)  # one may have come in the meantime
            start, layouts = await self._layout(tx)
            await self._rename(tx, self._projection.schema, self._next.schema, keep_previous)
            if row is None:
                row = await self._take_over(tx, boundary)
            positions = [start] * row["total_partitions"]
            written = json.dumps([one.as_json() for one in layouts])
            version = self._projection.version
            await store.restart(tx, name, boundary, positions, row["strategy"], history=written, version=version)
            await self._move_parked(tx, name, boundary)
            await self._forget(tx, boundary)

    async def _layout(self, tx: Any) -> tuple[Position, tuple[Layout, ...]]:
        """Where the new read model's partitions begin, and what they find done: workers came to different places."""
        store, name, boundary = self._store, self._next.name, self._boundary.name
        row = await store.locked(tx, name, boundary)
        current = Layout(row["strategy"], tuple(await store.positions(tx, name, boundary, lock=True)))
        return relaid([*map(Layout.of_json, json.loads(row["history"]))], current)

    async def _rename(self, tx: Any, live: str, following: str, keep_previous: bool) -> None:
        previous = f"{live}__previous"
        await tx.execute(f"DROP SCHEMA IF EXISTS {quoted(previous)} CASCADE")
        if await tx.fetchval("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1", live):
            await tx.execute(f"ALTER SCHEMA {quoted(live)} RENAME TO {quoted(previous)}")
            if not keep_previous:
                await tx.execute(f"DROP SCHEMA {quoted(previous)} CASCADE")
        await tx.execute(f"ALTER SCHEMA {quoted(following)} RENAME TO {quoted(live)}")

    async def _take_over(self, tx: Any, boundary: str) -> Any:
        """A projection that was never started: the rebuilt one becomes it. Returns its row."""
        projections = self._store.tables.q(self._store.tables.projections)
        return await tx.fetchrow(
            f"INSERT INTO {projections} (projection, boundary, version, total_partitions, strategy)"
            " VALUES ($1, $2, $3, 1, $4) RETURNING *",
            self._projection.name,
            boundary,
            self._projection.version,
            self._config.strategy.name,
        )

    async def _move_parked(self, tx: Any, name: str, boundary: str) -> None:
        parked = self._store.tables.q(self._store.tables.parked)
        await tx.execute(f"DELETE FROM {parked} WHERE projection = $1 AND boundary = $2", name, boundary)
        await tx.execute(
            f"UPDATE {parked} SET projection = $1 WHERE projection = $2 AND boundary = $3",
            name,
            self._next.name,
            boundary,
        )

    async def _drop_other_version(self) -> None:
        async with self._store.transaction() as tx:
            await check_own(tx, self._projection, self._boundary.name, self._store.tables)
            row = await self._store.locked(tx, self._next.name, self._boundary.name)
            if row is None or row["version"] != self._projection.version:
                await tx.execute(f"DROP SCHEMA IF EXISTS {quoted(self._next.schema)} CASCADE")
                await self._forget(tx, self._boundary.name)

    async def _forget(self, tx: Any, boundary: str) -> None:
        tables = self._store.tables
        for table in (tables.checkpoints, tables.parked, tables.projections):
            await tx.execute(
                f"DELETE FROM {tables.q(table)} WHERE projection = $1 AND boundary = $2", self._next.name, boundary
            )

    async def _position(self, projection: Projection | None = None) -> Position:
        async with self._store.transaction() as tx:
            found = await self._store.positions(tx, (projection or self._next).name, self._boundary.name)
        return min(found, default=NOTHING)

    def _progress(self, position: Position, head: Position) -> Progress:
        done, total = min(position.prepare, head.prepare) + 1, head.prepare + 1
        rate = self._handled / max(time.monotonic() - self._began, 1e-6)
        return Progress(done, total, self._handled, rate, (total - done) / rate if rate else None)
