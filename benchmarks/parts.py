"""The parts of a server in this process, on the PostgreSQL and NATS that the measured servers will use after it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from pathlib import Path

from orisun_server.delivery.nats import Nats
from orisun_server.embedded import Embedded
from orisun_server.setting_types import BoundarySetting
from orisun_server.settings import Settings
from orisun_server.storage.catalog import Boundary, Catalog
from orisun_server.storage.database import Database
from orisun_server.storage.group_commit import Appender
from orisun_server.storage.indexes import IndexDefinition, Indexes, IndexField
from orisun_server.storage.leases import Leases
from orisun_server.storage.migrate import Migrator
from orisun_server.storage.reads import Reader

from . import events
from .load import load
from .processes import free_port
from .sizes import Sizes

SCHEMA = "bench"
SMALL, BIG, BACKLOG = "bench_small", "bench_big", "bench_backlog"
_INDEX = IndexDefinition(events.INDEX_NAME, (IndexField(events.INDEX_KEY),))


class Directory:
    """Where the run keeps its data."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data, self.nats = path / "orisun", path / "nats"

    @property
    def postgres(self) -> Path:
        return self.data / "postgres"

    def log(self, name: str) -> Path:
        return self.path / f"{name}.log"


class Parts:
    """``async with Parts(directory)``: storage and a connection to NATS; nothing publishes by itself."""

    def __init__(self, directory: Directory) -> None:
        boundaries = tuple(BoundarySetting(name, "", SCHEMA) for name in (SMALL, BIG, BACKLOG))
        self.settings = Settings(
            data_dir=directory.data, nats_store_dir=directory.nats, nats_port=free_port(), boundaries=boundaries
        )
        self._parts = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Parts:
        try:
            await self._start()
        except BaseException:
            await self._parts.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._parts.aclose()

    async def _start(self) -> None:
        embedded = Embedded(self.settings)
        self._parts.push_async_callback(embedded.stop)
        self.settings = settings = await embedded.start()
        self.database = await Database.connect(settings)
        self._parts.push_async_callback(self.database.close)
        migrator = Migrator(self.database, settings.admin_schema)
        await migrator.apply([migrator.admin])
        self.leases = Leases(self.database, settings.admin_schema, secrets.token_hex(8), settings.node_ttl)
        self.catalog = Catalog(self.database, self.leases, migrator, settings.boundaries)
        self.indexes = Indexes(self.database, self.leases, settings.admin_schema, poll_interval=0.2)
        assert settings.nats_url is not None
        self.nats = Nats([settings.nats_url.get_secret_value()])
        for part in (self.leases, self.catalog, self.indexes, self.nats):
            await part.start()
            self._parts.push_async_callback(part.stop)
        self.appender = Appender(self.database, self.indexes)
        self._parts.push_async_callback(self.appender.stop)
        self.reader = Reader(self.database, self.indexes)

    def boundary(self, name: str) -> Boundary:
        return self.catalog.get(name)

    async def load(self, sizes: Sizes, *names: str) -> None:
        """Fill some of the boundaries. Those whose publishing is not measured count as published."""
        counts = {SMALL: sizes.small, BIG: sizes.big, BACKLOG: sizes.backlog}
        async with self.database.admin.acquire() as connection:
            for name in names:
                await load(connection, self.boundary(name), counts[name], published=name != BACKLOG)
            for name in (SMALL, BIG):
                await self.indexes.create(self.boundary(name), _INDEX)
                async with asyncio.timeout(600):
                    while _INDEX not in self.indexes.ready(name):  # noqa: ASYNC110 - tells nobody
                        await asyncio.sleep(0.05)
            # what was loaded should not reach the disk while something else is measured
            await connection.execute("CHECKPOINT")
