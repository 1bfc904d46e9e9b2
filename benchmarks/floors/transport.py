"""The floor of calls and streams: the transport alone, which answers at once with what it holds ready.

``python -m benchmarks.floors.transport native 5006 100000`` serves the methods that the load generator calls, without
authentication, validation or storage; a subscription streams that many serialized events. (``floors.doing`` does one
thing more.)
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2

from orisun_api import admin_pb2
from orisun_api import eventstore_pb2 as pb
from orisun_server.transport import native

from .. import events

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 100_000),
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
]
#: As many as there are matches for a tag in the load generator's log.
_TAG_SHARE = 1000


def _serialized(count: int) -> list[bytes]:
    """Serialized events as the store would stream them."""
    ids = events.ids()
    made = []
    for number in range(count):
        event = pb.Event(
            event_id=next(ids),
            event_type=events.EVENT_TYPE,
            # as jsonb prints it
            data=events.data(f"k{number % 1000}").replace(":", ": ").replace(",", ", "),
            metadata='{"source": "bench"}',
            position=pb.Position(commit_position=number + 1, prepare_position=number),
        )
        event.date_created.FromMilliseconds(1_700_000_000_000 + number)
        made.append(event.SerializeToString())
    return made


def _page(serialized: list[bytes]) -> bytes:
    return pb.GetEventsResponse(events=map(pb.Event.FromString, serialized)).SerializeToString()


class Floor:
    """Handlers that do nothing."""

    def __init__(self, count: int) -> None:
        self._events = _serialized(count)
        self._by_tag = _page(self._events[: count // _TAG_SHARE])
        self._pages = {start: _page(self._events[start : start + 1000]) for start in range(0, count, 1000)}
        boundary = admin_pb2.BoundaryInfo(status=admin_pb2.BOUNDARY_LIFECYCLE_STATUS_ACTIVE)
        self._boundary = admin_pb2.GetBoundaryResponse(boundary=boundary).SerializeToString()
        position = pb.Position(commit_position=1, prepare_position=0)
        self.written = pb.WriteResult(log_position=position).SerializeToString()

    async def ping(self, _raw: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("x-auth-token", "floor"),))
        return b""

    async def save_events(self, _raw: bytes, _context: Any) -> bytes:
        return self.written

    async def nothing(self, _raw: bytes, _context: Any) -> bytes:
        return b""

    async def get_boundary(self, _raw: bytes, _context: Any) -> bytes:
        return self._boundary

    async def get_events(self, raw: bytes, _context: Any) -> bytes:
        request = pb.GetEventsRequest.FromString(raw)
        if request.query.criteria:
            return self._by_tag
        return self._pages.get(request.from_position.prepare_position, b"")

    async def subscribe(self, _raw: bytes, context: Any) -> None:
        for event in self._events:
            await context.write(event)
        await asyncio.Event().wait()  # until the client leaves

    async def health(self, _raw: bytes, _context: Any) -> bytes:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()

    def register(self, server: Any) -> None:
        unary = grpc.unary_unary_rpc_method_handler
        server.add_registered_method_handlers(
            "orisun.EventStore",
            {
                "Ping": unary(self.ping),
                "SaveEvents": unary(self.save_events),
                "GetEvents": unary(self.get_events),
                "CreateIndex": unary(self.nothing),
                "CatchUpSubscribeToEvents": grpc.unary_stream_rpc_method_handler(self.subscribe),
            },
        )
        server.add_registered_method_handlers(
            "orisun.Admin", {"CreateBoundary": unary(self.nothing), "GetBoundary": unary(self.get_boundary)}
        )
        server.add_registered_method_handlers("grpc.health.v1.Health", {"Check": unary(self.health)})


async def serve(transport: str, port: int, floor: Floor) -> None:
    """Until SIGTERM."""
    # as the store makes it: its way to wait for a client streams faster than the library's own
    server: Any = native.server(_OPTIONS) if transport == "native" else grpc.aio.server(options=_OPTIONS)
    floor.register(server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), Floor(int(sys.argv[3]))))
