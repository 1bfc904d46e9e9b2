"""Indexes of boundaries: create, drop, list, and which are READY, kept up to date from the catalog.

Creating and dropping change the catalog and return; the work follows in the background, on whichever server is first
(``index_builder``). What is READY is cached: a server that learns of a change a second late reads slower for that
second, or asks for an index that is gone, and finds the same events.
"""

from __future__ import annotations

import asyncio
import builtins

import structlog

from ..errors import AlreadyExists, FailedPrecondition, NotFound
from ..tasks import end
from .catalog import Boundary
from .database import Database
from .index_builder import IndexBuilder
from .index_catalog import READY, IndexCatalog, IndexRecord, check
from .index_progress import Progress, progress
from .index_sql import IndexCondition, IndexDefinition, IndexField, ValueType
from .leases import Leases

__all__ = ["IndexCondition", "IndexDefinition", "IndexField", "IndexRecord", "Indexes", "ValueType"]

log = structlog.get_logger(__name__)


class Indexes:
    """The indexes of all boundaries. The admin schema must be migrated and ``leases`` be started before ``start``."""

    def __init__(self, database: Database, leases: Leases, admin_schema: str, *, poll_interval: float = 1.0) -> None:
        self._database = database
        self._catalog = IndexCatalog(database, admin_schema)
        self._builder = IndexBuilder(
            database, leases, self._catalog, records=lambda: self._records, refresh=self._refresh, look=self._look
        )
        self._interval = poll_interval
        self._version = -1
        self._records: list[IndexRecord] = []
        self._ready: dict[str, tuple[IndexDefinition, ...]] = {}
        self._refreshing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def ready(self, boundary: str) -> tuple[IndexDefinition, ...]:
        """The READY indexes of a boundary, from the cache; the same object until they change."""
        return self._ready.get(boundary, ())

    async def create(self, boundary: Boundary, definition: IndexDefinition) -> None:
        """Add an index; it is built in the background. One of the same name and shape is left as it is.

        Raises:
            InvalidArgument: The definition cannot be.
            AlreadyExists: The boundary has an index of that name and another shape.
            FailedPrecondition: So it has, and a resource in a cluster manages it.
            Unavailable: PostgreSQL cannot be reached.
        """
        check(definition)
        while not await self._catalog.add(boundary.names, definition):
            found = await self._catalog.find(boundary.name, definition.name)
            if found is not None and found.definition == definition:
                return
            if found is not None:
                _refuse_if_managed(found)
                raise AlreadyExists(f'index "{definition.name}" already exists with other fields or conditions')
        await self.look()

    async def drop(self, boundary: Boundary, name: str) -> None:
        """Drop an index, also one that is being built; its name is free at once. Of nothing: nothing.

        Raises FailedPrecondition when a resource in a cluster manages it, Unavailable.
        """
        while (found := await self._catalog.find(boundary.name, name)) is not None:
            _refuse_if_managed(found)
            # a resource may have adopted it since
            if await self._catalog.retire(found):
                break
        await self.look()

    async def list(self, boundary: Boundary) -> builtins.list[IndexRecord]:
        """The boundary's indexes as the catalog has them now, by name. Raises Unavailable."""
        return await self._catalog.of(boundary.name)

    async def get(self, boundary: Boundary, name: str) -> IndexRecord:
        """One index as the catalog has it now. Raises NotFound, Unavailable."""
        found = await self._catalog.find(boundary.name, name)
        if found is None:
            raise NotFound(f'index "{name}" not found')
        return found

    async def progress(self, record: IndexRecord) -> Progress | None:
        """How far the build of an index is; None while none runs. Raises Unavailable."""
        return None if record.state == READY else await progress(self._database, record)

    async def look(self) -> None:
        """Notice now what has changed in the catalog, and begin the work that follows. Raises Unavailable."""
        await self._refresh()
        self._look()

    async def start(self) -> None:
        """Read the catalog, and follow it from then on. Raises Unavailable."""
        await self._refresh()
        self._task = asyncio.create_task(self._follow(), name="indexes-poll")

    async def stop(self) -> None:
        """Stop following and building; what PostgreSQL builds it goes on building."""
        if self._task is not None:
            await end([self._task])
            self._task = None
        await self._builder.stop()

    def _look(self) -> None:
        self._wake.set()

    async def _follow(self) -> None:
        failing = False
        while True:
            self._wake.clear()
            try:
                await self._refresh()
                await self._builder.dispatch()
                failing = False
            except Exception as error:  # the poll goes on, whatever happens
                if not failing:
                    log.warning("the catalog of indexes cannot be read", error=str(error) or type(error).__name__)
                failing = True
            try:
                async with asyncio.timeout(self._interval):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _refresh(self) -> None:
        """Bring the cache up to the catalog's version: one statement when nothing has changed."""
        async with self._refreshing:
            version, broken = await self._catalog.version()
            if broken:
                for record in await self._catalog.broken():
                    log.warning(
                        "index is missing or invalid in PostgreSQL and is built again",
                        boundary=record.boundary,
                        index=record.definition.name,
                    )
                    await self._catalog.rebuild(record)
                version, _ = await self._catalog.version()
            if version == self._version:
                return
            # read after the version: newer at most, and then the next poll reads again
            self._records = await self._catalog.all()
            self._version = version
            ready: dict[str, builtins.list[IndexDefinition]] = {}
            for record in self._records:
                if record.state == READY:
                    ready.setdefault(record.boundary, []).append(record.definition)
            for boundary in self._ready.keys() | ready.keys():
                definitions = tuple(ready.get(boundary, ()))
                if definitions != self._ready.get(boundary):
                    self._ready[boundary] = definitions


def _refuse_if_managed(record: IndexRecord) -> None:
    if record.managed_by:
        raise FailedPrecondition(
            f'index "{record.definition.name}" of boundary "{record.boundary}" is managed by {record.managed_by}:'
            " change or delete that resource instead"
        )
