"""What the examples share: a store, and a PostgreSQL for read models.

Without settings a PostgreSQL, a NATS and a server are started for the run and removed afterwards. To use another store:
ORISUN_ADDRESS=localhost:5005, ORISUN_USERNAME, ORISUN_PASSWORD, and READ_MODEL_DSN=postgresql://... for projections.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

import orisun
from orisun.testing import local_store


@dataclass(frozen=True)
class Place:
    """Where an example works: a boundary of its own, and a schema of its own for its read model."""

    client: orisun.Client
    events: orisun.Boundary
    address: str
    username: str
    password: str
    dsn: str
    schema: str

    @asynccontextmanager
    async def pool(self) -> AsyncIterator[Any]:
        """Connections to the read model's PostgreSQL, with the schema first in their search_path."""
        path = f"{self.schema}, public"
        async with asyncpg.create_pool(
            self.dsn, min_size=1, max_size=12, server_settings={"search_path": path}
        ) as pool:
            await pool.execute(f'CREATE SCHEMA IF NOT EXISTS "{self.schema}"')
            yield pool

    async def index(self, name: str, *keys: str) -> None:
        """An index over keys of the data; what a command decides on is then found at once in a log of any size."""
        await self.client.admin.create_index(self.events.name, name, keys)


@asynccontextmanager
async def place(name: str) -> AsyncIterator[Place]:
    """A place whose boundary begins with ``name``."""
    async with AsyncExitStack() as parts:
        address = os.environ.get("ORISUN_ADDRESS", "")
        if address:
            username = os.environ.get("ORISUN_USERNAME", "admin")
            password, dsn = os.environ.get("ORISUN_PASSWORD", "changeit"), os.environ.get("READ_MODEL_DSN", "")
        else:
            # starting and stopping wait for processes; nothing else runs in this loop yet
            store = parts.enter_context(local_store())
            address, username, password, dsn = store.address, store.username, store.password, store.dsn
        client = await parts.enter_async_context(orisun.connect(address, username=username, password=password))
        unique = f"{name}_{secrets.token_hex(3)}"
        await client.admin.create_boundary(unique, schema="examples")
        yield Place(client, client.boundary(unique), address, username, password, dsn, f"read_{unique}")


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run an example."""
    asyncio.run(main())


async def until(condition: Callable[[], Awaitable[bool]], what: str, timeout: float = 60.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(timeout):
        while not await condition():  # noqa: ASYNC110 - what other processes write cannot be awaited
            await asyncio.sleep(0.01)
    print(what)
