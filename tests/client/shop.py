"""A boundary to append to, a read model of its own, and a projection that shows every repetition."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import asyncpg

import orisun
from orisun.projections import PostgresCheckpoints, Processor, ProcessorConfig, Projection, Tables, by_key


@dataclass
class Shop:
    """A boundary to append to, and a schema of its own for the read model."""

    boundary: orisun.Boundary
    pool: asyncpg.Pool
    schema: str
    appended: list[orisun.Position] = field(default_factory=list)

    async def append(self, *amounts: int, account: str = "a", event_type: str = "Deposited") -> None:
        events = [orisun.NewEvent(event_type, {"account": account, "amount": amount}) for amount in amounts]
        self.appended.append(await self.boundary.append(events))

    @property
    def tables(self) -> Tables:
        return Tables(schema=self.schema)

    @property
    def checkpoints(self) -> PostgresCheckpoints:
        return PostgresCheckpoints(self.pool, self.tables)

    def processor(self, **config: Any) -> Processor:
        return Processor(self.checkpoints, self.boundary, ProcessorConfig(**config))

    async def rows(self, schema: str | None = None) -> list[tuple[str, int]]:
        """What the read model has, in the order in which it was written."""
        found = await self.pool.fetch(f'SELECT account, amount FROM "{schema or self.schema}".deposit ORDER BY n')
        return [tuple(row) for row in found]


#: Makes the read model's table; rows have no key that would hide a repetition.
TABLE = "CREATE TABLE IF NOT EXISTS deposit (n bigserial, account text, amount int)"
INSERT = "INSERT INTO deposit (account, amount) VALUES ($1, $2)"


class OfDeposits(Projection):
    """What the projections of deposits have in common, however they write."""

    name = "deposits"
    query = orisun.where("Deposited")
    key_of = by_key("account")  # type: ignore[assignment]

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.poison: set[int] = set()


class Deposits(OfDeposits):
    """One row for each event."""

    failures = 0

    async def setup(self, tx: Any) -> None:
        await tx.execute(TABLE)

    async def handle(self, tx: Any, event: orisun.Event) -> None:
        await tx.execute(INSERT, event.data["account"], event.data["amount"])
        if event.data["amount"] in self.poison:
            self.failures += 1
            raise ValueError(f"secret {event.data['amount']}")


@contextlib.asynccontextmanager
async def running(
    processor: Processor, projection: Projection, *, ends: type[Exception] | None = None
) -> AsyncIterator[Processor]:
    """A processor at work, stopped at the end, unless it ends with that error before."""
    work = asyncio.create_task(processor.run(projection))
    try:
        yield processor
        processor.stop()
        with contextlib.suppress(*(ends,) if ends else ()):
            await asyncio.wait_for(work, 30)
    finally:
        work.cancel()


def has(shop: Shop, count: int, schema: str | None = None) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return len(await shop.rows(schema)) >= count

    return check


async def exists(shop: Shop) -> bool:
    return bool(await shop.pool.fetchval("SELECT to_regclass($1) IS NOT NULL", f'"{shop.schema}".deposit'))
