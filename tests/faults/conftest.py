"""Parts that a test of faults may kill; all other tests keep theirs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.parts import PostgresServer
from tests.integration.nodes import NatsServer, nats_server

_PG_BIN = os.environ.get("ORISUN_TEST_PG_BIN")


@pytest.fixture(params=["grpcio", "native"])
def transport(request: pytest.FixtureRequest) -> dict[str, str]:
    """The variable that makes servers use each of the transports, for what they take part in."""
    if request.param == "native" and importlib.util.find_spec("pygrpc_native") is None:
        pytest.skip("NOT TESTED on the native transport: pygrpc-native is not installed")
    return {"ORISUN_GRPC_TRANSPORT": request.param}


@pytest.fixture(scope="package")
async def own_postgres(directory: Path) -> AsyncIterator[PostgresServer]:
    """A PostgreSQL that tests kill and start again; it runs when a test begins."""
    server = PostgresServer(directory / "own-postgres", Path(_PG_BIN) if _PG_BIN else None)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def own_nats(directory: Path) -> AsyncIterator[NatsServer]:
    """A nats-server of the test's own."""
    async with nats_server(directory) as server:
        yield server
