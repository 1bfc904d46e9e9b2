"""The floor of appends: the same rows in the same table by prepared inserts, with nothing else around them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg

from orisun_server.embedded.postgres import PostgresAddress
from orisun_server.storage.names import BoundaryNames

from .. import events
from ..measure import Timings

_TABLE = "bench_floor.events"
_COLUMNS = "global_id, transaction_id, pg_transaction_id, event_id, event_type, data, metadata, date_created"
ONE = f"""
    INSERT INTO {_TABLE} ({_COLUMNS})
    VALUES ($1, $1::bigint + 1, pg_current_xact_id(), $2, $3, $4::text::jsonb, $5::text::jsonb, clock_timestamp())"""
_MANY = f"""
    INSERT INTO {_TABLE} ({_COLUMNS})
    SELECT $1::bigint + e.n - 1, $1 + cardinality($2::text[]), pg_current_xact_id(), e.id, e.type, e.data::jsonb,
           e.metadata::jsonb, clock_timestamp()
    FROM unnest($2::text[], $3::text[], $4::text[], $5::text[]) WITH ORDINALITY AS e(id, type, data, metadata, n)"""


@dataclass(frozen=True)
class Inserted:
    """Rows by second, and how long one statement took."""

    rows_per_s: float
    timings: Timings


class Inserts:
    """Inserts into a fresh copy of a boundary's table, indexes included, in the same database."""

    def __init__(self, address: PostgresAddress, like: BoundaryNames, rows: int, seconds: float) -> None:
        self.address, self._like, self._rows, self._seconds = address, like, rows, seconds

    async def run(self, group: int, connections: int = 1) -> Inserted:
        """Rows in statements of ``group``; ends after the configured rows or seconds, whichever is first."""
        await self.fresh_table()
        async with contextlib.AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(self._connection()) for _ in range(connections)]
            statements = [await connection.prepare(ONE if group == 1 else _MANY) for connection in opened]
            work = iter(self._arguments(group))
            timings = Timings()
            began = time.perf_counter()

            async def insert(statement: asyncpg.prepared_stmt.PreparedStatement) -> int:
                rows = 0
                for arguments in work:
                    await timings.time(statement.fetch(*arguments))
                    rows += group
                    if time.perf_counter() - began > self._seconds:
                        break
                return rows

            rows = sum(await asyncio.gather(*map(insert, statements)))
            return Inserted(rows / (time.perf_counter() - began), timings)

    def _arguments(self, group: int) -> list[tuple[object, ...]]:
        """All of them before the clock runs: making events is the load's work, not the floor's."""
        ids = events.ids()
        made: list[tuple[object, ...]] = []
        for first in range(0, max(self._rows, 4 * group), group):
            if group == 1:
                made.append((first, next(ids), events.EVENT_TYPE, events.data(f"k{first}"), events.METADATA))
                continue
            numbers = range(first, first + group)
            made.append(
                (
                    first,
                    [next(ids) for _ in numbers],
                    [events.EVENT_TYPE] * group,
                    [events.data(f"k{number}") for number in numbers],
                    [events.METADATA] * group,
                )
            )
        return made

    async def fresh_table(self) -> None:
        """An empty table, alone for whoever inserts next."""
        async with self._connection() as connection:
            await connection.execute(
                "CREATE SCHEMA IF NOT EXISTS bench_floor;"
                f" DROP TABLE IF EXISTS {_TABLE}; CREATE TABLE {_TABLE} (LIKE {self._like.q_events} INCLUDING ALL)"
            )

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        address = self.address
        connection = await asyncpg.connect(
            host=address.host,
            port=address.port,
            user=address.user,
            database=address.database,
            ssl=False,
            server_settings={"jit": "off"},
        )
        try:
            yield connection
        finally:
            await connection.close()
