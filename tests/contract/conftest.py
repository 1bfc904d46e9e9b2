"""Every test of the contract that uses ``server`` or ``settings`` runs on both transports."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from orisun_server.settings import Settings
from tests.contract import examples


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
