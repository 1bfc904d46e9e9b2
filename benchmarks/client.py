"""A client in Python, for what the load generator does not do."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orisun_api import admin_pb2, admin_pb2_grpc, eventstore_pb2_grpc
from orisun_api import eventstore_pb2 as pb

from . import events
from .measure import BenchError

NOTHING = pb.Position(commit_position=-1, prepare_position=-1)
_BASIC = (("authorization", "Basic " + base64.b64encode(b"admin:changeit").decode()),)
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # channels of one process with equal arguments would share a connection
    ("grpc.use_local_subchannel_pool", 1),
]


class Client:
    """Stubs over some connections, with the session token of the first administrator."""

    def __init__(self, address: str, connections: int = 1) -> None:
        self._channels = [grpc.aio.insecure_channel(address, options=_OPTIONS) for _ in range(connections)]
        # Any: the generated stubs are typed for synchronous channels
        self._stubs: list[Any] = [eventstore_pb2_grpc.EventStoreStub(channel) for channel in self._channels]
        self._admin: Any = admin_pb2_grpc.AdminStub(self._channels[0])
        self._turn = itertools.cycle(self._stubs)
        self._ids = events.ids()
        self.metadata: tuple[tuple[str, str], ...] = _BASIC

    async def connect(self) -> None:
        """Open every connection and take a token."""
        for stub in self._stubs:
            call = stub.Ping(pb.PingRequest(), metadata=_BASIC, timeout=15)
            await call
            for key, value in await call.initial_metadata():
                if key == "x-auth-token":
                    self.metadata = ((key, value),)

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))

    def event(self, key: str) -> pb.EventToSave:
        """A new event that carries the tag ``key``."""
        return pb.EventToSave(
            event_id=next(self._ids), event_type=events.EVENT_TYPE, data=events.data(key), metadata=events.METADATA
        )

    async def save(
        self,
        boundary: str,
        new: Sequence[pb.EventToSave],
        *,
        key: str | None = None,
        expected: pb.Position = NOTHING,
        timeout: float = 60,
    ) -> pb.Position:
        """Append; with ``key`` on condition that the latest event with that tag is at ``expected``."""
        request = pb.SaveEventsRequest(boundary=boundary, events=new)
        if key is not None:
            request.query.expected_position.CopyFrom(expected)
            request.query.subsetQuery.criteria.append(_criterion(key))
        answer = await next(self._turn).SaveEvents(request, metadata=self.metadata, timeout=timeout)
        position: pb.Position = answer.log_position
        return position

    async def latest(self, boundary: str, key: str) -> pb.Position:
        """The position of the latest event with a tag."""
        request = pb.GetLatestByCriteriaRequest(boundary=boundary, criteria=[_criterion(key)])
        answer = await next(self._turn).GetLatestByCriteria(request, metadata=self.metadata, timeout=60)
        position: pb.Position = answer.context_position
        return position

    async def page(self, boundary: str, key: str, count: int) -> int:
        """How many events a page of those with a tag has."""
        query = pb.Query(criteria=[_criterion(key)])
        request = pb.GetEventsRequest(boundary=boundary, query=query, count=count)
        answer = await next(self._turn).GetEvents(request, metadata=self.metadata, timeout=60)
        return len(answer.events)

    async def create_boundary(self, name: str, namespace: str) -> None:
        """Create a boundary and wait until it takes events."""
        placement = admin_pb2.BoundaryPlacementInput(backend="postgres", namespace=namespace)
        request = admin_pb2.CreateBoundaryRequest(name=name, placement=placement)
        await self._admin.CreateBoundary(request, metadata=self.metadata, timeout=30)
        for _ in range(300):
            asked = admin_pb2.GetBoundaryRequest(name=name)
            answer = await self._admin.GetBoundary(asked, metadata=self.metadata, timeout=30)
            if answer.boundary.status == admin_pb2.BOUNDARY_LIFECYCLE_STATUS_ACTIVE:
                return
            await asyncio.sleep(0.1)
        raise BenchError(f"boundary {name} does not become active")

    async def create_index(self, boundary: str) -> None:
        """Create the index that contexts of these events need, and wait until it is ready."""
        request = pb.CreateIndexRequest(
            boundary=boundary, name=events.INDEX_NAME, fields=[pb.IndexField(json_key=events.INDEX_KEY)]
        )
        stub = self._stubs[0]
        await stub.CreateIndex(request, metadata=self.metadata, timeout=30)
        for _ in range(300):
            asked = pb.GetIndexRequest(boundary=boundary, name=events.INDEX_NAME)
            if (await stub.GetIndex(asked, metadata=self.metadata)).index.state == pb.INDEX_STATE_READY:
                return
            await asyncio.sleep(0.1)
        raise BenchError(f"the index of {boundary} does not become ready")

    def subscription(self, boundary: str, name: str) -> Any:
        """A stream of serialized events from the beginning on, which are not parsed here."""
        method = self._channels[-1].unary_stream(
            "/orisun.EventStore/CatchUpSubscribeToEvents",
            request_serializer=pb.CatchUpSubscribeToEventStoreRequest.SerializeToString,
        )
        request = pb.CatchUpSubscribeToEventStoreRequest(boundary=boundary, subscriber_name=name)
        return method(request, metadata=self.metadata)


@contextlib.asynccontextmanager
async def connected(address: str, connections: int = 1) -> AsyncIterator[Client]:
    """A client with that many connections, closed at the end."""
    client = Client(address, connections)
    try:
        await client.connect()
        yield client
    finally:
        await client.close()


def _criterion(key: str) -> pb.Criterion:
    return pb.Criterion(tags=[pb.Tag(key=events.INDEX_KEY, value=key)])


async def is_serving(address: str) -> bool:
    """Whether a server there says so."""
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
