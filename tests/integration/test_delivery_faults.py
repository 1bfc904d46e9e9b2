"""Delivery while servers and PostgreSQL are killed or stopped: every event exactly once, in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from pydantic import SecretStr

from orisun_api import eventstore_pb2 as wire
from orisun_server.embedded.postgres import EmbeddedPostgres
from orisun_server.errors import Unavailable
from orisun_server.settings import Settings
from tests.harness import Connection, ServerProcess, eventually
from tests.integration.nodes import Node, Subscriber
from tests.integration.test_publisher import assert_streamed_once_and_in_order

pytestmark = pytest.mark.fault

MakeSettings = Callable[..., Settings]


@contextlib.asynccontextmanager
async def followed(connection: Connection, boundary: str) -> AsyncIterator[list[str]]:
    """The ids that a subscription over the wire receives."""
    ids: list[str] = []
    request = wire.CatchUpSubscribeToEventStoreRequest(boundary=boundary, subscriber_name="follower")
    call = connection.events.CatchUpSubscribeToEvents(request, metadata=connection.metadata)

    async def take() -> None:
        async for event in call:
            ids.append(event.event_id)

    task = asyncio.create_task(take())
    try:
        yield ids
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await task


@contextlib.asynccontextmanager
async def written(connection: Connection, boundary: str) -> AsyncIterator[list[str]]:
    """Appends without a pause; the ids that were stored, complete at the end."""
    ids: list[str] = []
    writing = True

    async def write() -> None:
        while writing:
            event = wire.EventToSave(event_id=secrets.token_hex(8), event_type="T", data="{}", metadata="{}")
            request = wire.SaveEventsRequest(boundary=boundary, events=[event])
            await connection.events.SaveEvents(request, metadata=connection.metadata, timeout=30)
            ids.append(event.event_id)
            await asyncio.sleep(0.002)

    task = asyncio.create_task(write())
    try:
        yield ids
    finally:
        writing = False
        await task


@pytest.mark.parametrize("stopped", [False, True])
async def test_the_publishing_server_is_killed_or_stopped(make_settings: MakeSettings, stopped: bool) -> None:
    """Another server goes on within ten seconds; one that was stopped and wakes up publishes nothing more."""
    settings = make_settings()
    boundary = settings.boundaries[0].name
    acquired = f"Successfully acquired lock for boundary: {boundary}"
    async with ServerProcess(settings) as first, ServerProcess(settings) as second:
        # one boundary each
        await eventually(
            lambda: "Successfully acquired lock" in first.logs and "Successfully acquired lock" in second.logs
        )
        owner, other = (second, first) if acquired in second.logs else (first, second)
        handovers = other.logs.count(acquired)
        async with followed(other.connection, boundary) as received:
            async with written(other.connection, boundary) as stored:
                await eventually(lambda: len(received) > 200, timeout=30)
                await (owner.sigstop() if stopped else owner.kill())
                # ten seconds, and some for a busy machine
                await eventually(lambda: other.logs.count(acquired) > handovers, timeout=15)
                if stopped:
                    await owner.sigcont()
                count = len(received)
                await eventually(lambda: len(received) > count + 300, timeout=30)
            await eventually(lambda: len(received) == len(stored))
            assert received == stored
            async with Node(settings, publishing=False) as node:
                await node.nats.wait_connected()
                await assert_streamed_once_and_in_order(node)


async def test_postgresql_is_killed_under_load(make_settings: MakeSettings, data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir / "postgres", configuration={"shared_buffers": "32MB"})
    address = await postgres.start()
    values = {"pg_host": address.host, "pg_port": address.port, "pg_user": address.user, "pg_name": address.database}
    # a restart on a busy machine takes a while, and leases should outlive it
    settings = make_settings(**values, pg_password=SecretStr(""), node_ttl=30)
    try:
        async with Node(settings) as node, Subscriber(node) as subscriber:
            writing = True

            async def write() -> None:
                while writing:
                    with contextlib.suppress(Unavailable):
                        await node.append(0)
                    await asyncio.sleep(0.005)

            task = asyncio.create_task(write())
            for _ in range(2):
                await subscriber.has(len(subscriber.events) + 50)
                assert postgres.pid is not None
                os.kill(postgres.pid, signal.SIGKILL)
                await subscriber.has(len(subscriber.events) + 50, timeout=30)
            writing = False
            await task
            stored = await node.stored()
            await subscriber.has(len(stored))
            assert subscriber.events == stored
            await assert_streamed_once_and_in_order(node)
    finally:
        await postgres.stop()
