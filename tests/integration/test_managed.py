"""Boundaries and indexes that a resource in a cluster manages, as the operator handles them beside running servers."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import nats
import pytest
from nats.js.errors import NotFoundError

from orisun_api import admin_pb2
from orisun_api import eventstore_pb2 as pb
from orisun_server.core.event import NewEvent
from orisun_server.core.position import NOTHING, Position
from orisun_server.errors import BoundaryNotActive
from orisun_server.settings import Settings
from orisun_server.storage.boundaries import BoundaryStatus
from orisun_server.storage.catalog import Boundary as ActiveBoundary
from orisun_server.storage.database import Database
from orisun_server.storage.in_process import InProcessStore
from orisun_server.storage.index_catalog import IndexCatalog, IndexRecord
from orisun_server.storage.index_sql import IndexDefinition, IndexField
from orisun_server.storage.indexes import Indexes
from orisun_server.storage.leases import Leases
from orisun_server.storage.managed import ManagedBoundaries
from orisun_server.storage.migrate import Migrator
from tests.harness import ADMIN, Connection, eventually, stream_name
from tests.integration.test_subscriptions_wire import Boundary

MakeServer = Callable[..., Awaitable[Connection]]
MANAGER = "Boundary/shop/orders"


class Operator:
    """The parts of storage that the operator uses, on one admin schema."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.migrator = Migrator(database, settings.admin_schema, applied_by="operator")
        self.leases = Leases(database, settings.admin_schema, "operator", 5.0, kind="operator")
        self.boundaries = ManagedBoundaries(database, self.leases, self.migrator)
        self.catalog = IndexCatalog(database, settings.admin_schema)
        self.indexes = Indexes(database, self.leases, settings.admin_schema, poll_interval=0.2)
        self.schema = settings.boundaries[0].schema

    async def make(self, name: str | None = None) -> ActiveBoundary:
        """Register a boundary and make its tables."""
        name = name or "managed_" + secrets.token_hex(4)
        record = await self.boundaries.register(name, "by a resource", self.schema, MANAGER)
        assert record is not None

        async def settled() -> bool:
            # a server may be faster, and hold the lease
            found = await self.boundaries.provision(record)
            assert found is not None
            assert (found.managed_by, found.last_error) == (MANAGER, "")
            return found.status is BoundaryStatus.ACTIVE

        await eventually(settled, 30)
        return ActiveBoundary.at(name, self.schema)


@pytest.fixture
async def operator(database: Database, settings: Settings) -> AsyncIterator[Operator]:
    operator = Operator(database, settings)
    await operator.migrator.apply([operator.migrator.admin])
    await operator.leases.start()
    await operator.indexes.start()
    yield operator
    await operator.indexes.stop()
    await operator.leases.stop()


async def seen(connection: Connection, name: str, *, active: bool = True) -> Boundary:
    """The boundary, once the server says that it is active (or, with ``active`` false, not any more)."""
    boundary = Boundary(connection, name)

    async def settled() -> bool:
        try:
            await connection.events.ListIndexes(pb.ListIndexesRequest(boundary=name), metadata=ADMIN)
        except grpc.aio.AioRpcError as error:
            return not active and error.details() == f'boundary "{name}" is not active'
        return active

    await eventually(settled, 30)
    return boundary


async def test_a_registered_boundary_is_taken_up_by_running_servers(
    operator: Operator, server: Connection, settings: Settings
) -> None:
    made = await operator.make()
    boundary = await seen(server, made.name)
    assert await boundary.append({"n": 1}) == (1, 0)

    async def published() -> bool:
        return (await operator.boundaries.figures(made)).lag == 0

    await eventually(published, 30)
    figures = await operator.boundaries.figures(made)
    assert (figures.events, figures.last, figures.published) == (1, Position(1, 0), Position(1, 0))
    assert figures.publisher
    # the name is taken, for everybody
    assert await operator.boundaries.register(made.name, "", made.schema, "Boundary/shop/other") is None


async def test_rpcs_that_would_change_what_a_resource_manages_name_the_resource(
    operator: Operator, server: Connection
) -> None:
    made = await operator.make()
    await seen(server, made.name)

    async def create(description: str) -> grpc.aio.AioRpcError:
        placement = admin_pb2.BoundaryPlacementInput(backend="postgres", namespace=made.schema)
        request = admin_pb2.CreateBoundaryRequest(name=made.name, description=description, placement=placement)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.admin.CreateBoundary(request, metadata=ADMIN)
        return caught.value

    assert (await create("by a resource")).code() is grpc.StatusCode.ALREADY_EXISTS
    refused = await create("another one")
    assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert MANAGER in (refused.details() or "")

    definition = IndexDefinition("by_user", (IndexField("user"),))
    manager = "EventIndex/shop/by-user"
    assert await operator.catalog.add(made.names, definition, managed_by=manager)
    await operator.indexes.look()

    async def index(key: str) -> None:
        request = pb.CreateIndexRequest(boundary=made.name, name="by_user", fields=[pb.IndexField(json_key=key)])
        await server.events.CreateIndex(request, metadata=ADMIN)

    await index("user")
    for change in (
        index("other"),
        server.events.DropIndex(pb.DropIndexRequest(boundary=made.name, name="by_user"), metadata=ADMIN),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await change
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert manager in (caught.value.details() or "")

    # an index by rpc on a managed boundary is like any other
    request = pb.CreateIndexRequest(boundary=made.name, name="mine", fields=[pb.IndexField(json_key="n")])
    await server.events.CreateIndex(request, metadata=ADMIN)
    await server.events.DropIndex(pb.DropIndexRequest(boundary=made.name, name="mine"), metadata=ADMIN)


async def test_another_shape_is_built_beside_the_old_one_and_takes_its_place(operator: Operator) -> None:
    made = await operator.make()
    old, new = (IndexDefinition("by_user", (IndexField(key),)) for key in ("user", "customer"))
    await operator.catalog.add(made.names, old, managed_by="EventIndex/shop/by-user")
    await operator.indexes.look()

    async def ready(definition: IndexDefinition) -> IndexRecord | None:
        found = await operator.catalog.find(made.name, "by_user")
        return found if found and found.state == "READY" and found.definition == definition else None

    before = await eventually(lambda: ready(old))
    assert not await operator.catalog.swap(made.name, "by_user")
    assert await operator.catalog.add(made.names, new, managed_by="EventIndex/shop/by-user", beside=True)
    # not before it is built; the old one serves until then
    assert not await operator.catalog.swap(made.name, "by_user")
    assert await ready(old) is not None
    # neither it nor the old one is another of that name
    assert [record.definition for record in await operator.indexes.list(made)] == [old]
    await operator.indexes.look()
    await eventually(lambda: operator.catalog.swap(made.name, "by_user"))
    after = await ready(new)
    assert after is not None
    assert after.pg_name != before.pg_name
    assert after.managed_by == "EventIndex/shop/by-user"
    await operator.indexes.look()

    async def dropped() -> bool:
        name = f'"{made.schema}"."{before.pg_name}"'
        return bool(await operator.database.admin.fetchval("SELECT to_regclass($1) IS NULL", name))

    await eventually(dropped, 30)


async def test_closing_ends_appends_and_subscriptions_and_removing_leaves_nothing(
    operator: Operator, server: Connection, settings: Settings
) -> None:
    async def objects() -> set[str]:
        rows = await operator.database.admin.fetch(
            "SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace($1) AND relkind <> 't'"
            " UNION SELECT proname::text FROM pg_proc WHERE pronamespace = to_regnamespace($1)",
            operator.schema,
        )
        return {row[0] for row in rows}

    before = await objects()
    made = await operator.make()
    boundary = await seen(server, made.name)
    await boundary.append({"n": 1})
    await operator.catalog.add(
        made.names, IndexDefinition("by_n", (IndexField("n"),)), managed_by="EventIndex/shop/by-n"
    )
    call = server.events.CatchUpSubscribeToEvents(
        pb.CatchUpSubscribeToEventStoreRequest(boundary=made.name, subscriber_name="s"), metadata=ADMIN
    )
    assert (await call.read()).position.prepare_position == 0
    assert settings.nats_url is not None
    client = await nats.connect(settings.nats_url.get_secret_value())
    jetstream = client.jetstream()

    async def has_stream() -> bool:
        with contextlib.suppress(NotFoundError):
            return bool(await stream_name(jetstream, made.name))
        return False

    try:
        await eventually(has_stream, 30)
        appending = asyncio.create_task(append_until_refused(boundary))
        await operator.boundaries.close(made, MANAGER, "it is being removed")
        at = (await operator.boundaries.figures(made)).last
        assert await appending == 'FAILED_PRECONDITION boundary "' + made.name + '" is not active'
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_on(call)
        assert caught.value.details() == f'boundary "{made.name}" is not active'
        await seen(server, made.name, active=False)
        assert (await operator.boundaries.figures(made)).last == at

        assert not await operator.boundaries.remove(made, "Boundary/shop/other")
        assert await operator.boundaries.has_tables(made)
        assert await operator.boundaries.remove(made, MANAGER)
        assert await operator.boundaries.find(made.name) is None
        assert await objects() == before

        async def stream_gone() -> bool:
            return not await has_stream()

        await eventually(stream_gone, 30)
    finally:
        await client.close()
    # and the name is free again
    await operator.make(made.name)
    assert await (await seen(server, made.name)).append({"n": 1}) == (1, 0)


async def read_on(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def append_until_refused(boundary: Boundary) -> str:
    while True:
        try:
            await boundary.append({"n": 2})
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name} {error.details()}"


async def test_postgres_refuses_writers_that_have_not_noticed(operator: Operator) -> None:
    made = await operator.make()
    # remembers boundaries for a minute, as a server does that cannot reach the catalog
    writer = InProcessStore(operator.migrator.admin.schema, refresh=60)
    async with operator.database.write.acquire() as connection:
        await writer.append(connection, made.name, [NewEvent("1", "Happened", "{}", "{}")])
        await operator.boundaries.close(made, MANAGER, "it is being removed")
        with pytest.raises(BoundaryNotActive):
            await writer.append(connection, made.name, [NewEvent("2", "Happened", "{}", "{}")])
        await operator.boundaries.reopen(made)
        await writer.append(connection, made.name, [NewEvent("2", "Happened", "{}", "{}")])


async def test_a_closed_boundary_can_be_opened_again(operator: Operator, server: Connection) -> None:
    made = await operator.make()
    boundary = await seen(server, made.name)
    await boundary.append({"n": 1})
    await operator.boundaries.close(made, MANAGER, "it is being removed")
    await seen(server, made.name, active=False)
    await operator.boundaries.reopen(made)
    await operator.make(made.name)
    await seen(server, made.name)
    assert await boundary.append({"n": 2}) == (2, 1)
    figures = await operator.boundaries.figures(made)
    assert (figures.events, figures.last != NOTHING) == (2, True)


async def test_handing_over(operator: Operator) -> None:
    made = await operator.make()
    record = await operator.boundaries.find(made.name)
    assert record is not None
    free = await operator.boundaries.manage(record, "")
    assert free is not None
    assert (free.managed_by, free.description) == ("", "by a resource")
    # who was slower does not take it
    assert await operator.boundaries.manage(record, "Boundary/shop/other") is None
    taken = await operator.boundaries.manage(free, "Boundary/shop/other", "new words")
    assert taken is not None
    assert (taken.managed_by, taken.description) == ("Boundary/shop/other", "new words")
