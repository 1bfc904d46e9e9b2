"""The pytest plugin: fixtures that every test of an application may ask for, without importing anything.

It imports nothing but pytest until a fixture is used, so that it costs no other test run anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from orisun.client import Client
    from orisun_server.testing.local import LocalStore


@pytest.fixture(scope="session")
def orisun_store() -> Iterator[LocalStore]:
    """A store for the run: PostgreSQL, NATS and a server, started at the first use, one for each pytest process."""
    from orisun_server.testing.local import LocalStore

    with LocalStore() as store:
        yield store


@pytest.fixture
def orisun_boundary(orisun_store: LocalStore) -> str:
    """The name of a fresh, empty boundary for this test."""
    return orisun_store.create_boundary()


@pytest.fixture(scope="session")
def orisun_connect(orisun_store: LocalStore) -> Callable[..., Client]:
    """Make clients of the store, for ``async with orisun_connect() as client``; arguments are those of
    ``orisun.connect``."""

    def connect(**options: object) -> Client:
        import orisun

        given = {"username": orisun_store.username, "password": orisun_store.password} | options
        return orisun.connect(orisun_store.address, **given)  # type: ignore[arg-type]

    return connect
