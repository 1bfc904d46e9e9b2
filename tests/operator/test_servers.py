"""The operator's work beside running servers, which in a cluster only verify the schema."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable

import grpc
import pytest

from orisun_api import admin_pb2
from orisun_api import eventstore_pb2 as pb
from orisun_operator.reconcile.schema import survey
from orisun_server.setting_types import BoundarySetting, default_schema
from orisun_server.settings import Settings
from tests.harness import ADMIN, Connection, eventually
from tests.integration.test_subscriptions_wire import Boundary
from tests.operator.stores import CLUSTER, Store, condition

MakeServer = Callable[..., Awaitable[Connection]]


@pytest.fixture
async def server(store: Store, make_server: MakeServer) -> Connection:
    """A server as the pods have it: it knows the admin boundary alone, and waits until the schema is there."""
    name = store.settings.admin_boundary
    settings: Settings = store.settings.model_copy(
        update={"schema_migrations": "verify", "boundaries": (BoundarySetting(name, "", default_schema(name)),)}
    )
    starting = asyncio.ensure_future(make_server(settings))
    await asyncio.sleep(0)
    assert not starting.done()
    await survey(store.context, await store.get("OrisunCluster", CLUSTER))
    async with asyncio.timeout(60):
        return await starting


async def taken_up(server: Connection, name: str) -> Boundary:
    boundary = Boundary(server, name)

    async def known() -> bool:
        try:
            await server.events.ListIndexes(pb.ListIndexesRequest(boundary=name), metadata=ADMIN)
        except grpc.aio.AioRpcError:
            return False
        return True

    await eventually(known, 30)
    return boundary


async def test_running_servers_take_up_what_resources_ask_for(store: Store, server: Connection) -> None:
    await store.boundary("orders")
    await store.settled("orders")
    boundary = await taken_up(server, "orders")
    assert await boundary.append({"user": "u1"}) == (1, 0)
    await store.index("by-user", "orders", "user")
    await store.settled("by-user", kind="EventIndex")

    async def published() -> bool:
        store.late += 61
        await store.reconcile("orders")
        return bool((await store.status("Boundary", "orders"))["lag"] == 0)

    await eventually(published, 30)
    status = await store.status("Boundary", "orders")
    assert (status["eventCount"], status["lastPublishedPosition"]["preparePosition"]) == (1, 0)
    # a pod's host name is the pod's
    assert status["publisherPod"] == platform.node()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await server.events.DropIndex(pb.DropIndexRequest(boundary="orders", name="by-user"), metadata=ADMIN)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"EventIndex/{store.namespace}/by-user" in (caught.value.details() or "")


async def test_who_waits_for_a_boundary_to_be_ready_can_append_at_once(store: Store, server: Connection) -> None:
    # polls of the server fall somewhere: several, so that one comes too late in any case unless it is waited for
    names = [f"orders{n}" for n in range(4)]
    for name in names:
        await store.boundary(name)
        await store.reconcile(name)
        assert condition(await store.status("Boundary", name), "Ready")["status"] == "False"
    for name in names:
        await store.settled(name)
        assert await Boundary(server, name).append({"n": 1}) == (1, 0)


async def test_boundaries_and_indexes_by_rpc_work_as_on_a_laptop_and_are_listed(
    store: Store, server: Connection
) -> None:
    placement = admin_pb2.BoundaryPlacementInput(backend="postgres", namespace=store.schema)
    request = admin_pb2.CreateBoundaryRequest(name="by_rpc", placement=placement)
    made = await server.admin.CreateBoundary(request, metadata=ADMIN)
    assert made.boundary.status == admin_pb2.BOUNDARY_LIFECYCLE_STATUS_ACTIVE
    boundary = await taken_up(server, "by_rpc")
    assert await boundary.append({"user": "u1"}) == (1, 0)
    index = pb.CreateIndexRequest(boundary="by_rpc", name="mine", fields=[pb.IndexField(json_key="user")])
    await server.events.CreateIndex(index, metadata=ADMIN)
    found = await survey(store.context, await store.get("OrisunCluster", CLUSTER))
    assert (found.ready, found.unmanaged.boundaries, found.unmanaged.indexes) == (True, ("by_rpc",), ("by_rpc/mine",))


async def test_a_boundary_that_goes_is_gone_for_clients_and_the_server_serves_on(
    store: Store, server: Connection
) -> None:
    for name in ("orders", "payments"):
        await store.boundary(name, deletionPolicy="Delete")
        await store.settled(name)
    orders, payments = await taken_up(server, "orders"), await taken_up(server, "payments")
    await orders.append({"n": 1})
    await store.kube.delete(store.ref("Boundary", "orders"))
    await store.gone("orders")

    async def refused() -> str | None:
        try:
            await orders.append({"n": 2})
        except grpc.aio.AioRpcError as error:
            return error.details()
        return None

    assert await eventually(refused, 30) == 'boundary "orders" is not active'
    assert await payments.append({"n": 1}) == (1, 0)
    assert await server.is_serving()
    assert condition(await store.settled("payments"), "Ready")["status"] == "True"
