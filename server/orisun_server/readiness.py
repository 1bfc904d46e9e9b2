"""Whether there is something to serve: PostgreSQL, and a schema that this server can run on."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack

import structlog

from .errors import SchemaMismatch, Unavailable
from .settings import Settings
from .storage.catalog import Catalog
from .storage.database import Database
from .storage.migrate import Migrator
from .transport.health import HealthState
from .transport.waiting import waiting_server

log = structlog.get_logger(__name__)

#: Seconds between two attempts to reach PostgreSQL, or to find the schema that another process migrates.
_RETRY = 1.0
#: Seconds between two looks at PostgreSQL's health.
_HEALTH_INTERVAL = 1.0


async def reach_storage(settings: Settings, health: HealthState) -> tuple[Database, Migrator]:
    """Waits for PostgreSQL and for a schema that this server can run on; meanwhile health says NOT_SERVING."""
    async with AsyncExitStack() as meanwhile:
        told = ""
        while True:
            database: Database | None = None
            try:
                database = await Database.connect(settings)
                migrator = Migrator(database, settings.admin_schema)
                seeds = [(boundary.name, boundary.schema) for boundary in settings.boundaries]
                if settings.schema_migrations == "verify":
                    await migrator.verify(await migrator.scopes(seeds))
                else:
                    await migrator.apply([migrator.admin])
                return database, migrator
            except (Unavailable, SchemaMismatch) as problem:
                if database is not None:
                    await database.close()
                if isinstance(problem, SchemaMismatch) and settings.schema_migrations == "apply":
                    raise
                if not told:
                    await meanwhile.enter_async_context(waiting_server(settings, health))
                if told != str(problem):
                    told = str(problem)
                    log.warning("waiting for PostgreSQL", reason=told)
                    health.set_storage(False, told)
                await asyncio.sleep(_RETRY)
            except BaseException:
                if database is not None:
                    await database.close()
                raise


async def watch_storage(database: Database, catalog: Catalog, health: HealthState) -> None:
    """Keeps ``health`` true to PostgreSQL and to what the catalog refuses; does not return."""
    pause = 0.0  # what answered before tells silence from a slow login
    with contextlib.closing(database.probe()) as probe:
        while True:
            await asyncio.sleep(pause)
            pause = _HEALTH_INTERVAL
            try:
                with database.guard():
                    await probe.ask()
            except Exception as problem:  # the watch goes on, whatever happens
                if health.storage_ok:
                    log.warning("PostgreSQL is not available", reason=str(problem))
                health.set_storage(False, str(problem))
                continue
            refused = catalog.refused
            if not health.storage_ok and not refused:
                log.info("PostgreSQL is available")
            health.set_storage(not refused, "; ".join(f"{name}: {why}" for name, why in refused.items()))
