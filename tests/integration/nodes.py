"""A server's storage and delivery without its gRPC, and a nats-server to kill, for tests of delivery."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType

from orisun_api import eventstore_pb2
from orisun_server.core.criteria import WHOLE_BOUNDARY, Query
from orisun_server.core.event import NewEvent
from orisun_server.core.position import Position
from orisun_server.delivery.live_tail import LiveTails
from orisun_server.delivery.lookout import Lookout
from orisun_server.delivery.nats import Nats
from orisun_server.delivery.publishers import Publishers
from orisun_server.delivery.pubsub import PubSub
from orisun_server.delivery.signals import Signals
from orisun_server.delivery.subscription import Subscriptions
from orisun_server.embedded.nats import _binary
from orisun_server.errors import OrisunError
from orisun_server.settings import Settings
from orisun_server.storage.catalog import Boundary, Catalog
from orisun_server.storage.database import Database
from orisun_server.storage.group_commit import Appender
from orisun_server.storage.identity import store_id
from orisun_server.storage.indexes import Indexes
from orisun_server.storage.leases import Leases
from orisun_server.storage.migrate import Migrator
from orisun_server.storage.reads import Reader
from tests.harness import eventually, free_port


class Node:
    """The parts of one server; ``async with Node(settings)``. With ``publishing`` false its publishers do not start."""

    def __init__(self, settings: Settings, *, publishing: bool = True) -> None:
        self.settings, self.publishing = settings, publishing
        self._parts = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Node:
        settings = self.settings
        self.database = await Database.connect(settings)
        self._parts.push_async_callback(self.database.close)
        migrator = Migrator(self.database, settings.admin_schema)
        await migrator.apply([migrator.admin])
        self.leases = Leases(self.database, settings.admin_schema, secrets.token_hex(8), settings.node_ttl)
        await self.run(self.leases)
        self.catalog = Catalog(self.database, self.leases, migrator, settings.boundaries)
        await self.run(self.catalog)
        indexes = Indexes(self.database, self.leases, settings.admin_schema)
        await self.run(indexes)
        self.reader = Reader(self.database, indexes)
        assert settings.nats_url is not None
        # as servers do, so that a node reads their streams
        self.store = await store_id(self.database, settings.admin_schema)
        self.nats = Nats(settings.nats_url.get_secret_value().split(","), store=self.store)
        await self.run(self.nats)
        self.signals = Signals(self.database, settings.admin_schema, enabled=settings.pg_listen_enabled)
        await self.run(self.signals)
        self.lookout = Lookout(self.database, settings.publisher_poll_interval)
        await self.run(self.lookout)
        self.appender = Appender(self.database, indexes)
        self.publishers = Publishers(
            settings,
            database=self.database,
            catalog=self.catalog,
            leases=self.leases,
            reader=self.reader,
            nats=self.nats,
            signals=self.signals,
            lookout=self.lookout,
            quiet_for=lambda: self.appender.quiet_for,
        )
        if self.publishing:
            await self.run(self.publishers)
        self._parts.push_async_callback(self.appender.stop)
        self.tails = LiveTails(self.nats, self.lookout)
        self._parts.push_async_callback(self.tails.stop)
        self.subscriptions = Subscriptions(self.leases, self.reader, self.tails)
        self._parts.push_async_callback(self.subscriptions.stop)
        self.pubsub = PubSub(self.nats)
        self._parts.push_async_callback(self.pubsub.stop)
        self.appender.on_commit(self.publishers.committed)
        self.appender.on_commit(self.subscriptions.wake)
        self.signals.on_signal(self.subscriptions.wake)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._parts.aclose()

    async def run(self, part: Nats | Leases | Catalog | Indexes | Signals | Lookout | Publishers) -> None:
        await part.start()
        self._parts.push_async_callback(part.stop)

    def stream_of(self, boundary: str) -> str:
        """The name of a boundary's stream."""
        return f"ORISUN_EVENTS_{self.store}_{boundary}"

    @property
    def boundary(self) -> Boundary:
        """The first boundary of the settings."""
        return self.catalog.get(self.settings.boundaries[0].name)

    async def append(self, *numbers: int, boundary: Boundary | None = None, padding: int = 0) -> Position:
        """One call with an event for each number."""
        events = [
            NewEvent(secrets.token_hex(12), f"Type{n % 3}", f'{{"n": {n}, "pad": "{"x" * padding}"}}', "{}")
            for n in numbers
        ]
        return await self.appender.append(boundary or self.boundary, events, None)

    async def stored(self, boundary: Boundary | None = None) -> list[tuple[Position, str]]:
        """Position and id of every event that PostgreSQL holds."""
        boundary = boundary or self.boundary
        rows = await self.database.admin.fetch(
            f"SELECT transaction_id, global_id, event_id FROM {boundary.names.q_events} ORDER BY global_id"
        )
        return [(Position(row[0], row[1]), row[2]) for row in rows]

    async def checkpoint(self, boundary: Boundary | None = None) -> tuple[Position, int]:
        """The stored checkpoint: position and number of events."""
        boundary = boundary or self.boundary
        row = await self.database.admin.fetchrow(
            f"SELECT transaction_id, global_id, event_count FROM {boundary.names.q_published}"
        )
        return (Position(row[0], row[1]), row[2]) if row else (Position(-1, -1), 0)

    async def published(self, boundary: Boundary | None = None) -> bool:
        """Whether the checkpoint has reached the head."""
        return (await self.checkpoint(boundary))[0] == await self.reader.head(boundary or self.boundary)


async def _each(lots: AsyncIterator[list[bytes]]) -> AsyncIterator[eventstore_pb2.Event]:
    async for few in lots:
        for raw in few:
            yield eventstore_pb2.Event.FromString(raw)


class Subscriber:
    """Takes everything from a subscription and keeps positions and ids; ``async with Subscriber(node)``."""

    def __init__(
        self,
        node: Node,
        *,
        query: Query = WHOLE_BOUNDARY,
        after: Position | None = None,
        name: str | None = None,
        boundary: Boundary | None = None,
        on_event: Callable[[], None] | None = None,
    ) -> None:
        self._node, self._query, self._on_event = node, query, on_event
        self._after, self._name = after, name or secrets.token_hex(4)
        self._boundary = boundary or node.boundary
        self.events: list[tuple[Position, str]] = []
        self.numbers: list[int] = []
        self.failure: OrisunError | None = None
        self.resume = asyncio.Event()
        self.resume.set()

    async def _take(self) -> None:
        stream = self._node.subscriptions.subscribe(self._boundary, self._query, self._after, self._name)
        try:
            async with contextlib.aclosing(stream) as events:
                async for event in _each(events):
                    position = Position(event.position.commit_position, event.position.prepare_position)
                    self.events.append((position, event.event_id))
                    if self._on_event is not None:
                        self._on_event()
                    await self.resume.wait()
        except OrisunError as failure:
            self.failure = failure

    async def __aenter__(self) -> Subscriber:
        self.task = asyncio.create_task(self._take())
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])

    async def has(self, count: int, timeout: float = 30.0) -> None:
        """Waits for that many events."""

        def reached() -> bool:
            if self.task.done():
                raise self.failure or self.task.exception() or AssertionError("the subscription ended")
            return len(self.events) >= count

        await eventually(reached, timeout, message=f"{count} events")

    async def is_live(self) -> None:
        """Waits until it follows the live tail, having read all that is stored."""
        (tail,) = self._node.tails.of(self._boundary.name)
        await eventually(lambda: tail.live and all(inbox.intact for inbox in tail.inboxes), message="a live tail")


class NatsServer:
    """A nats-server with JetStream on one port and directory, which can be killed, wiped and started again."""

    def __init__(self, directory: Path, *, arguments: list[str] | None = None) -> None:
        self.port = free_port()
        self.store = directory / f"nats{self.port}"
        self._arguments = arguments or []
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            _binary(), "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.store), *self._arguments,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

        async def listens() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                return False
            writer.close()
            return True

        await eventually(listens, message="nats-server")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self.signal(signal.SIGKILL)
            await self._process.wait()

    def wipe(self) -> None:
        shutil.rmtree(self.store)

    def limit_files(self, size: int | None) -> None:
        """From now on no file of it can grow beyond so many bytes, so that its writes fail; None lifts that."""
        assert self._process is not None
        limit = resource.RLIM_INFINITY if size is None else size
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


@contextlib.asynccontextmanager
async def nats_server(directory: Path, *arguments: str) -> AsyncIterator[NatsServer]:
    """A nats-server of one's own."""
    server = NatsServer(directory, arguments=list(arguments))
    await server.start()
    try:
        yield server
    finally:
        await server.kill()
