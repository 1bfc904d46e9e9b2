"""The composition root: builds the parts of a server, starts them, and stops them in reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import platform
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Protocol

import structlog

from .admin.administration import Administration
from .admin.web.host import WebHost
from .admin.web.parts import Parts
from .delivery.live_tail import LiveTails
from .delivery.nats import Nats
from .delivery.publishers import Publishers
from .delivery.pubsub import PubSub
from .delivery.roll_call import RollCall
from .delivery.signals import Signals
from .delivery.subscription import Subscriptions
from .drained import tell_drained, told
from .embedded import Embedded
from .errors import SchemaMismatch, Unavailable
from .settings import Settings
from .storage.catalog import Catalog
from .storage.database import Database
from .storage.group_commit import Appender
from .storage.identity import store_id
from .storage.indexes import Indexes
from .storage.leases import Leases
from .storage.migrate import Migrator
from .storage.reads import Reader
from .tasks import end
from .telemetry.telemetry import Telemetry, new_watch
from .transport import admin, eventstore
from .transport.calls import Service
from .transport.health import HealthState
from .transport.server import GrpcServer
from .transport.waiting import waiting_server

log = structlog.get_logger(__name__)

#: Seconds between two attempts to reach PostgreSQL, or to find the schema that another process migrates.
_RETRY = 1.0
#: Part of ORISUN_SHUTDOWN_GRACE that calls get to finish; the rest is for what stops after them.
_CALLS_SHARE = 0.75
#: Seconds between two looks at PostgreSQL's health, and how long an answer may take.
_HEALTH_INTERVAL, _HEALTH_PATIENCE = 1.0, 3.0
#: Connections of the read pool that are left to publishers and live tails.
_OF_DELIVERY = 5


class App:
    """A server: ``start`` returns when it serves; ``stop`` finishes what was taken and hands over its leases."""

    #: Metrics and what they are made of; known after ``start``.
    telemetry: Telemetry

    def __init__(self, settings: Settings) -> None:
        #: As asked for.
        self.settings = settings
        #: With the addresses of what was embedded; known after ``start``.
        self.effective = settings
        self.health = HealthState()
        self.web = WebHost(settings, self.health)
        self.watch = new_watch(settings)
        # begins with the machine's name, which in a cluster is the pod's
        self.node_id = f"{platform.node() or 'node'}-{secrets.token_hex(4)}"
        self.address = ""
        #: The admin page's URL, "" without one; known after ``start``.
        self.page_address = ""
        self._parts = AsyncExitStack()

    async def start(self) -> None:
        """Raises an OrisunError that says what to do when the server cannot run as it is configured."""
        try:
            await self._start()
        except BaseException:
            await self._parts.aclose()
            raise

    async def stop(self) -> None:
        await self._parts.aclose()

    async def _start(self) -> None:
        web = self.web
        await self._run(web)
        self.page_address = web.address
        embedded = Embedded(self.settings)
        self._parts.push_async_callback(embedded.stop)
        self.effective = settings = await embedded.start()
        database, migrator = await self._reach_storage(settings)
        self._parts.push_async_callback(database.close)

        leases = Leases(database, settings.admin_schema, self.node_id, settings.node_ttl)
        await self._run(leases)
        catalog = Catalog(
            database, leases, migrator, settings.boundaries, migrate=settings.schema_migrations == "apply"
        )
        await self._run(catalog)
        indexes = Indexes(database, leases, settings.admin_schema)
        await self._run(indexes)
        watch = self.watch
        reader = Reader(database, indexes, leave=_OF_DELIVERY, watch=watch)
        deliverer = Reader(database, indexes)
        appender = Appender(
            database,
            indexes,
            max_events=settings.append_max_events,
            queue_calls=settings.append_queue_calls,
            queue_bytes=settings.append_queue_bytes,
            watch=watch,
        )
        administration = Administration(
            settings,
            database=database,
            catalog=catalog,
            leases=leases,
            indexes=indexes,
            reader=reader,
            appender=appender,
        )
        self._parts.push_async_callback(administration.stop)
        await administration.start()

        nats = Nats(_nats_urls(settings), store=await store_id(database, settings.admin_schema))
        nats.on_change(
            lambda: self.health.set_delivery(nats.connected, "" if nats.connected else "NATS is unreachable")
        )
        await self._run(nats)
        signals = Signals(database, settings.admin_schema, enabled=settings.pg_listen_enabled)
        await self._run(signals)
        publishers = Publishers(
            settings,
            catalog=catalog,
            leases=leases,
            reader=deliverer,
            nats=nats,
            database=database,
            signals=signals,
            watch=watch,
        )
        await self._run(publishers)
        appender.on_commit(publishers.committed)
        self._parts.push_async_callback(appender.stop)
        # once more, before the appender: the last denied calls are still written
        self._parts.push_async_callback(administration.stop)
        signals.on_signal(administration.committed)
        tails = LiveTails(nats, deliverer)
        self._parts.push_async_callback(tails.stop)
        subscriptions = Subscriptions(leases, reader, tails, watch)
        self._parts.push_async_callback(subscriptions.stop)
        appender.on_commit(subscriptions.wake)
        signals.on_signal(subscriptions.wake)
        catalog.on_change(lambda: subscriptions.keep({boundary.name for boundary in catalog.active()}))
        pubsub = PubSub(nats)
        self._parts.push_async_callback(pubsub.stop)

        server = GrpcServer(
            settings,
            [
                Service(
                    eventstore.DESCRIPTOR,
                    eventstore.EventStore(
                        settings=settings,
                        catalog=catalog,
                        appender=appender,
                        reader=reader,
                        indexes=indexes,
                        subscriptions=subscriptions,
                        pubsub=pubsub,
                        audit=administration.audit,
                        node_id=self.node_id,
                    ),
                ),
                Service(
                    admin.DESCRIPTOR,
                    admin.Admin(
                        catalog,
                        indexes,
                        counts=administration.counts,
                        users=administration.users,
                        passwords=administration.logins,
                        accounts=administration.accounts,
                        audit=administration.audit,
                    ),
                ),
            ],
            administration.sessions,
            self.health,
            denied=administration.audit.denied,
            watch=watch,
        )
        administration.users.on_change(server.calls.end_invalid)
        await self._parts.enter_async_context(_background(self._watch(database, catalog), "health"))
        self.telemetry = telemetry = Telemetry(
            settings,
            watch,
            node_id=self.node_id,
            health=self.health,
            database=database,
            catalog=catalog,
            appender=appender,
            publishers=publishers,
            subscriptions=subscriptions,
            nats=nats,
        )
        await self._run(telemetry)
        roll_call = RollCall(nats, subscriptions, settings.admin_schema)
        await self._run(roll_call)
        self.health.set_storage(True)
        await server.start()
        self._parts.push_async_callback(server.stop, settings.shutdown_grace * _CALLS_SHARE)
        self.address = f"{settings.grpc_host}:{server.port}"
        web.show(
            Parts(
                settings=settings,
                node_id=self.node_id,
                administration=administration,
                catalog=catalog,
                database=database,
                reader=reader,
                indexes=indexes,
                appender=appender,
                subscriptions=subscriptions,
                publishers=publishers,
                roll_call=roll_call,
                telemetry=telemetry,
                watch=watch,
            )
        )
        self._parts.callback(web.hide)

    async def _run(self, part: _Part) -> None:
        await part.start()
        self._parts.push_async_callback(part.stop)

    async def _reach_storage(self, settings: Settings) -> tuple[Database, Migrator]:
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
                        await meanwhile.enter_async_context(waiting_server(settings, self.health))
                    if told != str(problem):
                        told = str(problem)
                        log.warning("waiting for PostgreSQL", reason=told)
                        self.health.set_storage(False, told)
                    await asyncio.sleep(_RETRY)
                except BaseException:
                    if database is not None:
                        await database.close()
                    raise

    async def _watch(self, database: Database, catalog: Catalog) -> None:
        while True:
            await asyncio.sleep(_HEALTH_INTERVAL)
            try:
                with database.guard():
                    async with asyncio.timeout(_HEALTH_PATIENCE):
                        await database.admin.fetchval("SELECT 1")
            except Exception as problem:  # the watch goes on, whatever happens
                if self.health.storage_ok:
                    log.warning("PostgreSQL is not available", reason=str(problem))
                self.health.set_storage(False, str(problem))
                continue
            refused = catalog.refused
            if not self.health.storage_ok and not refused:
                log.info("PostgreSQL is available")
            self.health.set_storage(not refused, "; ".join(f"{name}: {why}" for name, why in refused.items()))


class _Part(Protocol):
    """What has a life: ``start`` and ``stop``."""

    async def start(self) -> object: ...

    async def stop(self) -> object: ...


async def run(settings: Settings, *, on_ready: Callable[[App], None] | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then stops within ORISUN_SHUTDOWN_GRACE; a second signal exits at once."""
    with told(settings.drained_file):
        await _run(settings, on_ready)


async def _run(settings: Settings, on_ready: Callable[[App], None] | None) -> None:
    app = App(settings)
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()

    def on_signal() -> None:
        if asked_to_stop.is_set():
            exit_now()
        log.info("stopping; a second signal exits at once")
        asked_to_stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    starting = asyncio.create_task(app.start())
    stop = asyncio.create_task(asked_to_stop.wait())
    try:
        await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            return
        await starting
        _calm_garbage_collection()
        if on_ready is not None:
            on_ready(app)
        await stop
        stopping = asyncio.create_task(app.stop(), name="stop")
        await asyncio.wait([stopping], timeout=settings.shutdown_grace)
        if not stopping.done():
            log.error("ORISUN_SHUTDOWN_GRACE is over and not everything has ended; PostgreSQL or NATS may hang")
            tell_drained(settings.drained_file)
            exit_now(1)
        await stopping
        log.info("stopped")
    finally:
        stop.cancel()


def _calm_garbage_collection() -> None:
    """Thousands of waiting calls are not garbage: look for cycles less often, and never among what stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def exit_now(code: int = 130) -> None:
    """Ends the process as SIGKILL would; PostgreSQL and leases are made for that."""
    import os

    os._exit(code)


@contextlib.asynccontextmanager
async def _background(work: Awaitable[None], name: str) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    if isinstance(task, asyncio.Task):
        task.set_name(name)
    try:
        yield
    finally:
        await end([task])


def _nats_urls(settings: Settings) -> list[str]:
    return [] if settings.nats_url is None else settings.nats_url.get_secret_value().split(",")
