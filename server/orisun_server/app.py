"""The composition root: builds the parts of a server, starts them, and stops them in reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from typing import Protocol

from .admin.administration import Administration
from .admin.web.host import WebHost
from .admin.web.parts import Parts
from .delivery.live_tail import LiveTails
from .delivery.lookout import Lookout
from .delivery.nats import Nats
from .delivery.origins import Origins
from .delivery.publishers import Publishers
from .delivery.pubsub import PubSub
from .delivery.roll_call import RollCall
from .delivery.signals import Signals
from .delivery.subscription import Subscriptions
from .embedded import Embedded
from .readiness import reach_storage, watch_storage
from .settings import Settings
from .storage.catalog import Catalog
from .storage.group_commit import Appender
from .storage.identity import store_id
from .storage.indexes import Indexes
from .storage.leases import Leases
from .storage.reads import Reader
from .tasks import end
from .telemetry.telemetry import Telemetry, new_watch
from .transport import admin, eventstore
from .transport.calls import Service
from .transport.health import HealthState
from .transport.server import GrpcServer, transport_of

#: Part of ORISUN_SHUTDOWN_GRACE that calls get to finish; the rest is for what stops after them.
_CALLS_SHARE = 0.75
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
        database, migrator = await reach_storage(settings, self.health)
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
            gather=transport_of(settings) == "grpcio",
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

        nats = Nats(settings.nats_servers, store=await store_id(database, settings.admin_schema))
        nats.on_change(
            lambda: self.health.set_delivery(nats.connected, "" if nats.connected else "NATS is unreachable")
        )
        await self._run(nats)
        signals = Signals(database, settings.admin_schema, enabled=settings.pg_listen_enabled)
        await self._run(signals)
        lookout = Lookout(database, settings.publisher_poll_interval)
        await self._run(lookout)
        publishers = Publishers(
            settings,
            catalog=catalog,
            leases=leases,
            reader=deliverer,
            nats=nats,
            database=database,
            signals=signals,
            lookout=lookout,
            quiet_for=lambda: appender.quiet_for,
            watch=watch,
        )
        await self._run(publishers)
        await self._run(Origins(nats, watch.tracing, publishers.published_here))
        appender.on_commit(publishers.committed)
        self._parts.push_async_callback(appender.stop)
        # once more, before the appender: the last denied calls are still written
        self._parts.push_async_callback(administration.stop)
        signals.on_signal(administration.committed)
        tails = LiveTails(nats, lookout)
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
        await self._parts.enter_async_context(_background(watch_storage(database, catalog, self.health), "health"))
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
        roll_call = RollCall(nats, subscriptions)
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


class _Part(Protocol):
    """What has a life: ``start`` and ``stop``."""

    async def start(self) -> object: ...

    async def stop(self) -> object: ...


@contextlib.asynccontextmanager
async def _background(work: Awaitable[None], name: str) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    if isinstance(task, asyncio.Task):
        task.set_name(name)
    try:
        yield
    finally:
        await end([task])
