"""Clients of the library on real servers."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest

import orisun
from orisun_server.settings import Settings
from tests.client.shop import Shop
from tests.harness import Connection


@pytest.fixture
async def make_client() -> AsyncIterator[Callable[..., orisun.Client]]:
    """Make clients that are closed after the test: ``make_client(address, username=...)``; the administrator's."""
    made: list[orisun.Client] = []

    def make(address: str, **options: object) -> orisun.Client:
        if "token" not in options:
            options = {"username": "admin", "password": "changeit", **options}
        client = orisun.connect(address, **options)  # type: ignore[arg-type]
        made.append(client)
        return client

    yield make
    for client in made:
        await client.close()


@pytest.fixture
def client(server: Connection, make_client: Callable[..., orisun.Client]) -> orisun.Client:
    """The administrator's client of a server in this process."""
    return make_client(server.address)


@pytest.fixture
def orders(client: orisun.Client, settings: Settings) -> orisun.Boundary:
    """An empty boundary."""
    return client.boundary(settings.boundaries[0].name)


@pytest.fixture
async def shop(client: orisun.Client, settings: Settings, pg_dsn: str) -> AsyncIterator[Shop]:
    """A boundary, and a read model of its own."""
    schema = f"shop_{secrets.token_hex(4)}"
    async with asyncpg.create_pool(pg_dsn, min_size=0, max_size=12) as pool:
        await pool.execute(f'CREATE SCHEMA "{schema}"')
        yield Shop(client.boundary(settings.boundaries[0].name), pool, schema)
