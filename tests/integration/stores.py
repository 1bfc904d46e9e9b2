"""The storage of one server: catalog, leases, indexes, appends and reads, without transport and delivery."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Mapping
from typing import Any

from orisun_server.core.event import NewEvent
from orisun_server.core.position import Position
from orisun_server.settings import Settings
from orisun_server.storage.catalog import Boundary, Catalog
from orisun_server.storage.database import Database
from orisun_server.storage.group_commit import Appender
from orisun_server.storage.index_sql import IndexCondition, IndexDefinition, IndexField, ValueType
from orisun_server.storage.indexes import Indexes
from orisun_server.storage.leases import Leases
from orisun_server.storage.migrate import Migrator
from orisun_server.storage.reads import Reader
from tests.harness import eventually

TEXT, NUMERIC, BOOLEAN, TIMESTAMPTZ = ValueType


def index(
    name: str,
    *fields: str | tuple[str, ValueType],
    where: tuple[tuple[str, str, str], ...] = (),
    combinator: str = "AND",
) -> IndexDefinition:
    """``index("amount", ("amount", NUMERIC), where=(("eventType", "=", "Placed"),))``"""
    return IndexDefinition(
        name,
        tuple(IndexField(field) if isinstance(field, str) else IndexField(*field) for field in fields),
        tuple(IndexCondition(*condition) for condition in where),
        combinator,
    )


def event(data: Mapping[str, Any] | str, event_type: str = "Placed") -> NewEvent:
    """An event with an id of its own."""
    return NewEvent(secrets.token_hex(12), event_type, data if isinstance(data, str) else json.dumps(data), "{}")


class Store:
    """``async with Store(settings) as store``; several on the same settings are servers of one cluster."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._parts = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Store:
        schema = self.settings.admin_schema
        self.database = await Database.connect(self.settings)
        self._parts.push_async_callback(self.database.close)
        migrator = Migrator(self.database, schema)
        await migrator.apply([migrator.admin])
        self.leases = Leases(self.database, schema, secrets.token_hex(8), self.settings.node_ttl)
        self.catalog = Catalog(self.database, self.leases, migrator, self.settings.boundaries)
        self.indexes = Indexes(self.database, self.leases, schema, poll_interval=0.2)
        for part in (self.leases, self.catalog, self.indexes):
            await part.start()
            self._parts.push_async_callback(part.stop)
        self.appender = Appender(self.database, self.indexes)
        self._parts.push_async_callback(self.appender.stop)
        self.reader = Reader(self.database, self.indexes)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._parts.aclose()

    @property
    def boundary(self) -> Boundary:
        """The first boundary of the settings."""
        return self.catalog.get(self.settings.boundaries[0].name)

    async def append(self, *events: NewEvent) -> Position:
        return await self.appender.append(self.boundary, events, None)

    async def create(self, *definitions: IndexDefinition) -> None:
        """Create indexes and wait until they are READY here."""
        for definition in definitions:
            await self.indexes.create(self.boundary, definition)
        for definition in definitions:
            await self.is_ready(definition)

    async def is_ready(self, definition: IndexDefinition) -> None:
        await eventually(lambda: definition in self.indexes.ready(self.boundary.name), message=definition.name)

    async def state(self, name: str) -> str:
        return (await self.indexes.get(self.boundary, name)).state

    async def built(self) -> dict[str, bool]:
        """The indexes of users that PostgreSQL has on the boundary's table, and whether they are valid."""
        rows = await self.database.admin.fetch(
            "SELECT c.relname, x.indisvalid FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid "
            "WHERE x.indrelid = $1::text::regclass AND NOT x.indisunique",
            self.boundary.names.q_events,
        )
        return {row[0]: row[1] for row in rows}
