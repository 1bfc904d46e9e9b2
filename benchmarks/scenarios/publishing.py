"""The publisher with a backlog, beside NATS's client with the same messages."""

from __future__ import annotations

import asyncio
import contextlib
import time

from nats.js.api import Header
from nats.js.errors import NotFoundError

from orisun_server.core.criteria import WHOLE_BOUNDARY
from orisun_server.core.position import NOTHING
from orisun_server.delivery.codec import encode_event
from orisun_server.delivery.lookout import Lookout
from orisun_server.delivery.publisher import Publisher
from orisun_server.delivery.publishers import KIND
from orisun_server.delivery.signals import Signals
from orisun_server.delivery.stream import POSITION, PREVIOUS, message_id
from orisun_server.storage.catalog import Boundary

from ..bench import InProcess
from ..floors.jetstream import Message, publish_all
from ..load import mark_published
from ..measure import BenchError, interleaved, median
from ..parts import BACKLOG, Parts
from ..results import at_least


async def publisher(bench: InProcess) -> None:
    """Drains a boundary from its beginning, in each round into a fresh stream."""
    parts, count = bench.parts, bench.sizes.backlog
    boundary = parts.boundary(BACKLOG)
    connection = await parts.nats.wait_connected()
    messages = await _messages(parts, boundary)
    if len(messages) != count:
        raise BenchError(f"the backlog has {len(messages)} events instead of {count}")

    async def drain() -> float:
        return count / await _drain(parts, boundary, count)

    async def floor() -> float:
        return count / await publish_all(connection, parts.settings, messages)

    measured, floors = map(median, await interleaved(bench.sizes.rounds, drain, floor))
    bench.add("publisher", f"{count:,} events", measured, "events/s", floor=floors, bar=at_least(0.6))


async def _drain(parts: Parts, boundary: Boundary, count: int) -> float:
    """Seconds until NATS has stored everything."""
    connection = await parts.nats.wait_connected()
    name = connection.stream_prefix + boundary.name
    async with parts.database.admin.acquire() as postgres:
        await mark_published(postgres, boundary, 0)
    with contextlib.suppress(NotFoundError):
        await connection.jetstream.delete_stream(name)
    lease = await parts.leases.acquire(KIND, boundary.name)
    if lease is None:
        raise BenchError("another server publishes the backlog")
    settings = parts.settings
    made = Publisher(
        boundary,
        lease,
        reader=parts.reader,
        nats=parts.nats,
        database=parts.database,
        lookout=Lookout(parts.database, settings.publisher_poll_interval),
        signals=Signals(parts.database, settings.admin_schema, enabled=False),
        settings=settings,
        quiet_for=lambda: 0.0,
    )
    began = time.perf_counter()
    task = asyncio.create_task(made.run())
    try:
        while True:
            await asyncio.sleep(0.02)
            with contextlib.suppress(NotFoundError):
                info = await connection.jetstream.stream_info(name)
                if info.state.last_seq >= count:
                    return time.perf_counter() - began
            if task.done() or time.perf_counter() - began > 300:
                raise BenchError("the publisher did not drain the backlog")
    finally:
        made.stop()
        await task
        await lease.release()


async def _messages(parts: Parts, boundary: Boundary) -> list[Message]:
    """What the publisher sends, made beforehand."""
    messages: list[Message] = []
    after = NOTHING
    while True:
        scan = await parts.reader.scan(boundary, WHOLE_BOUNDARY, after, 5_000, 64 * 2**20)
        for event in scan.events:
            headers = {
                POSITION: f"{event.commit},{event.prepare}",
                PREVIOUS: f"{after.commit},{after.prepare}",
                Header.MSG_ID.value: message_id(event.prepare, event.event_id),
                Header.EXPECTED_LAST_SEQUENCE.value: str(len(messages)),
            }
            messages.append(Message(encode_event(event), headers))
            after = event.position
        if scan.at_head:
            return messages
