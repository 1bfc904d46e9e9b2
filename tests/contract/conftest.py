"""Every test of the contract that uses ``server`` or ``settings`` runs on both transports."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from orisun_server.settings import Settings
from tests.contract import examples, fuzzing
from tests.harness import ServerProcess


@pytest.fixture(scope="session", params=["grpcio", "native"])
def transport(request: pytest.FixtureRequest) -> str:
    """ORISUN_GRPC_TRANSPORT."""
    if request.param == "native" and importlib.util.find_spec("pygrpc_native") is None:
        pytest.skip("NOT TESTED on the native transport: pygrpc-native is not installed")
    return str(request.param)


@pytest.fixture
def settings(make_settings: Callable[..., Settings], transport: str) -> Settings:
    """As for every test, with the transport: ``server`` follows."""
    return make_settings(grpc_transport=transport)


@pytest.fixture(scope="session")
def grpcurl(directory: Path) -> Path:
    """The path of the real grpcurl."""
    program = examples.grpcurl(directory)
    if program is None:
        pytest.skip("NOT TESTED with the real grpcurl: install it, or name it in ORISUN_TEST_GRPCURL")
    return program


@pytest.fixture(scope="module")
async def target(make_settings: Callable[..., Settings], transport: str) -> AsyncIterator[fuzzing.Target]:
    """One server for all tests of a transport; whatever they do, it is well at the end and has told nothing."""
    settings = make_settings(grpc_transport=transport, logging_level="DEBUG")
    async with ServerProcess(settings) as process:
        target = fuzzing.Target(process, settings.boundaries[0].name, settings)
        yield target
        await target.is_well()
        assert fuzzing.MARK not in process.logs
        for word in ("Traceback", "incident", "unexpected error", "never retrieved"):
            assert word not in process.logs, process.logs
        await target.channel.close()
