"""Fixtures that every test may use: one real PostgreSQL and one real nats-server for the run, all else fresh.

A test asks for the least that it needs: ``boundary`` (a boundary with its tables), ``settings`` (fresh boundaries in
fresh schemas, nothing created yet), ``server`` (a server in this process) or ``server_process``.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from pydantic import SecretStr

from orisun_server.embedded.nats import EmbeddedNats
from orisun_server.embedded.postgres import EmbeddedPostgres, PostgresAddress
from orisun_server.setting_types import BoundarySetting
from orisun_server.settings import Settings
from tests.harness import Connection, ServerProcess

if TYPE_CHECKING:
    from orisun_server.storage.catalog import Boundary
    from orisun_server.storage.database import Database

# a machine that is busy with something else for a while is no mistake of the program
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

_numbers = itertools.count()
#: Another PostgreSQL's bin directory, to run the suite on: ORISUN_TEST_PG_BIN=/usr/lib/postgresql/15/bin make test
_PG_BIN = os.environ.get("ORISUN_TEST_PG_BIN")


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """A directory for the run that PostgreSQL's user may pass (pytest's own are closed to others)."""
    made = Path(tempfile.mkdtemp(prefix="orisun-test-", dir="/tmp"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def data_dir(directory: Path) -> Path:
    """An empty directory for one test, like ``directory``."""
    made = directory / f"data{next(_numbers)}"
    made.mkdir(mode=0o711)
    return made


@pytest.fixture(scope="session")
async def postgres(directory: Path) -> AsyncIterator[PostgresAddress]:
    """The address of a running PostgreSQL."""
    # a power failure in a test run loses nothing that matters
    configuration = {"fsync": "off", "shared_buffers": "64MB"}
    embedded = EmbeddedPostgres(
        directory / "postgres", binaries=Path(_PG_BIN) if _PG_BIN else None, configuration=configuration
    )
    yield await embedded.start()
    await embedded.stop()


@pytest.fixture(scope="session")
async def nats_url(directory: Path) -> AsyncIterator[str]:
    """The URL, with credentials, of a running nats-server with JetStream."""
    embedded = EmbeddedNats(Settings(nats_port=0, nats_store_dir=directory / "nats", nats_server_name="orisun-test"))
    yield await embedded.start()
    await embedded.stop()


@pytest.fixture(scope="session")
def pg_dsn(postgres: PostgresAddress) -> str:
    """The PostgreSQL as a connection URI for asyncpg or psql."""
    return f"postgresql://{postgres.user}@/{postgres.database}?host={postgres.host}&port={postgres.port}"


@pytest.fixture(scope="session")
def pg_settings(postgres: PostgresAddress) -> Settings:
    """Settings that name the running PostgreSQL and NATS's default; boundaries are the defaults."""
    return Settings(
        pg_host=postgres.host,
        pg_port=postgres.port,
        pg_user=postgres.user,
        pg_password=SecretStr(""),
        pg_name=postgres.database,
        pg_sslmode="disable",
        grpc_host="127.0.0.1",
        grpc_port=0,
        admin_port=0,
        otel_enabled=False,
    )


@pytest.fixture(scope="session")
def make_settings(pg_settings: Settings, nats_url: str) -> Callable[..., Settings]:
    """Make settings with fresh boundaries in fresh schemas on the running PostgreSQL and NATS.

    ``make_settings("orders", "payments", append_max_events=5)`` gives two boundaries and an admin boundary, each with a
    suffix of its own: take the real names from ``settings.boundaries`` (the admin boundary is the last). Without names
    there is one, "orders". ``exact=True`` leaves names as they are.
    """

    def make(*names: str, exact: bool = False, **overrides: Any) -> Settings:
        fresh = f"{next(_numbers)}_{secrets.token_hex(3)}"
        suffix = "" if exact else f"_{fresh}"
        boundaries = [BoundarySetting(name + suffix, "", f"events_{fresh}") for name in names or ("orders",)]
        admin = BoundarySetting("orisun_admin" + suffix, "", f"admin_{fresh}")
        values = {field: getattr(pg_settings, field) for field in pg_settings.model_fields_set}
        values |= {"boundaries": (*boundaries, admin), "admin_boundary": admin.name, "nats_url": SecretStr(nats_url)}
        return Settings(**{**values, **overrides})

    return make


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """Settings for one test: one fresh boundary and a fresh admin boundary."""
    return make_settings()


@pytest.fixture(scope="session")
async def database(pg_settings: Settings) -> AsyncIterator[Database]:
    """Pools of connections, shared by the run."""
    from orisun_server.storage.database import Database

    database = await Database.connect(pg_settings)
    yield database
    await database.close()


@pytest.fixture(scope="session")
async def make_boundary(database: Database) -> Callable[..., Awaitable[Boundary]]:
    """Make a fresh boundary with its tables: ``await make_boundary("orders")``; the name gets a suffix of its own."""
    from orisun_server.storage.catalog import Boundary
    from orisun_server.storage.migrate import Migrator
    from orisun_server.storage.migrations import boundary_scope
    from orisun_server.storage.names import BoundaryNames

    migrator = Migrator(database, f"admin_shared_{secrets.token_hex(3)}")
    await migrator.apply([migrator.admin])

    async def make(name: str = "orders", schema: str = "events") -> Boundary:
        name = f"{name}_{next(_numbers)}_{secrets.token_hex(3)}"
        await migrator.apply([boundary_scope(name, schema)])
        return Boundary(name, schema, BoundaryNames(schema, name))

    return make


@pytest.fixture
async def boundary(make_boundary: Callable[..., Awaitable[Boundary]]) -> Boundary:
    """A fresh boundary with its tables."""
    return await make_boundary()


@pytest.fixture
async def make_server() -> AsyncIterator[Callable[..., Awaitable[Connection]]]:
    """Start a server in this process on a free port: ``connection = await make_server(settings)``."""
    from orisun_server.app import App

    ended: list[Callable[[], Awaitable[None]]] = []

    async def make(settings: Settings) -> Connection:
        app = App(settings)
        ended.append(app.stop)
        await app.start()
        connection = Connection(app.address)
        ended.append(connection.close)
        return connection

    yield make
    for end in reversed(ended):
        await end()


@pytest.fixture
async def server(make_server: Callable[..., Awaitable[Connection]], settings: Settings) -> Connection:
    """A server in this process: its address, stubs and administrator's metadata; its boundary is in ``settings``."""
    return await make_server(settings)


@pytest.fixture
async def server_process(settings: Settings) -> AsyncIterator[ServerProcess]:
    """``orisun serve`` as a process of its own, serving."""
    async with ServerProcess(settings) as process:
        yield process
