"""Clients of the library on real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

import orisun
from orisun_server.settings import Settings
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
