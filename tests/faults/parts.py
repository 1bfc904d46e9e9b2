"""PostgreSQL and NATS seen from outside the servers: to kill them, and to look at what is in them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import nats
import psutil
from nats.js import api

from orisun_server.core.position import NOTHING, Position
from orisun_server.delivery.stream import POSITION, PREVIOUS, parse_position
from orisun_server.embedded.postgres import EmbeddedPostgres, PostgresAddress
from orisun_server.settings import Settings
from orisun_server.storage.names import BoundaryNames, quote
from tests.faults.checker import Stored
from tests.faults.clients import Endpoint
from tests.harness import eventually, stream_name


class PostgresServer:
    """A PostgreSQL on one directory that can be killed, as a machine's memory is lost, and started again."""

    def __init__(self, directory: Path, binaries: Path | None = None) -> None:
        self._directory, self._binaries = directory, binaries
        self._embedded: EmbeddedPostgres | None = None
        self.address: PostgresAddress | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """What ``make_settings`` needs to use it."""
        assert self.address is not None
        return {"pg_host": self.address.host, "pg_port": self.address.port, "pg_name": self.address.database}

    @property
    def pid(self) -> int:
        assert self._embedded is not None
        assert self._embedded.pid is not None
        return self._embedded.pid

    async def start(self) -> None:
        # what is written survives the death of processes without fsync
        configuration = {"fsync": "off", "shared_buffers": "32MB"}
        self._embedded = EmbeddedPostgres(self._directory, binaries=self._binaries, configuration=configuration)
        address = await self._embedded.start()
        assert self.address in (None, address), "it moved"
        self.address = address

    async def kill(self) -> None:
        """SIGKILL to all of its processes."""
        assert self._embedded is not None
        postmaster = psutil.Process(self.pid)
        for process in (postmaster, *postmaster.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        # ends the supervision before it can start another one
        await self._embedded.stop()

    def signal(self, number: signal.Signals) -> None:
        """To the postmaster and all of its processes."""
        postmaster = psutil.Process(self.pid)
        for process in (postmaster, *postmaster.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(process.pid, number)

    async def stop(self) -> None:
        if self._embedded is not None:
            await self._embedded.stop()


@contextlib.asynccontextmanager
async def connected(settings: Settings, database: str | None = None) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the PostgreSQL of the settings."""
    connection = await asyncpg.connect(
        host=settings.pg_host, port=settings.pg_port, user=settings.pg_user, database=database or settings.pg_name
    )
    try:
        yield connection
    finally:
        connection.terminate()


def names_of(settings: Settings, number: int = 0) -> BoundaryNames:
    """The objects of a boundary in PostgreSQL."""
    boundary = settings.boundaries[number]
    return BoundaryNames(boundary.schema, boundary.name)


async def checkpoint_of(connection: asyncpg.Connection, names: BoundaryNames) -> tuple[Position, int]:
    """Position and epoch of what is published."""
    row = await connection.fetchrow(f"SELECT transaction_id, global_id, epoch FROM {names.q_published}")
    return (Position(row[0], row[1]), row[2]) if row else (NOTHING, 0)


async def publishers(
    settings: Settings, endpoints: Sequence[Endpoint], *, fair: bool = True, timeout: float = 20
) -> dict[str, int]:
    """Which of the servers publishes each boundary; waits until all are published, if ``fair`` by each its share."""
    ids = [await endpoint.node_id() for endpoint in endpoints]
    share = math.ceil(len(settings.boundaries) / (len(ids) if fair else 1))
    schema = quote(settings.admin_schema)
    statement = (
        f"SELECT l.boundary, n.node_id FROM {schema}.orisun_lease AS l JOIN {schema}.orisun_node AS n USING (node_id)"
        " WHERE l.kind = 'publisher' AND n.expires_at > clock_timestamp()"
    )
    async with connected(settings) as connection:

        async def found() -> dict[str, int] | None:
            rows = await connection.fetch(statement)
            holders = {b: n for b, node in rows for n, own in enumerate(ids) if node.startswith(own)}
            counts = Counter(holders.values())
            return holders if len(holders) == len(settings.boundaries) and max(counts.values()) <= share else None

        holders: dict[str, int] | None = await eventually(found, timeout, message="a fair share for each server")
        assert holders is not None
        return holders


class Streamed(NamedTuple):
    """A message of a boundary's stream."""

    sequence: int
    position: Position
    previous: Position
    message_id: str


class Stream:
    """The stream of a boundary (the first of the settings), read past all servers; ``async with``."""

    def __init__(self, settings: Settings, number: int = 0, *, url: str = "") -> None:
        assert settings.nats_url is not None
        self._url = url or settings.nats_url.get_secret_value()
        self._boundary, self._known = settings.boundaries[number].name, ""

    async def __aenter__(self) -> Stream:
        self._client = await nats.connect(self._url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
        self._jetstream = self._client.jetstream()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def _name(self) -> str:
        self._known = self._known or await stream_name(self._jetstream, self._boundary)
        return self._known

    async def head(self) -> Position:
        """The position of the last message."""
        with contextlib.suppress(nats.errors.Error):
            name = await self._name()
            info = await self._jetstream.stream_info(name)
            if info.state.messages:
                message = await self._jetstream.get_msg(name, info.state.last_seq)
                return parse_position((message.headers or {})[POSITION])
        return NOTHING

    async def delete(self) -> None:
        """As an operator may do who frees space."""
        await self._jetstream.delete_stream(await self._name())

    async def is_complete(self) -> bool:
        """Whether three servers of a cluster have it, up to date."""
        cluster = (await self._jetstream.stream_info(await self._name())).cluster
        replicas = (cluster.replicas or []) if cluster else []
        return sum(bool(replica.current) for replica in replicas) == 2

    async def is_beyond(self, position: Position) -> bool:
        """Whether something after a position is published."""
        return await self.head() > position

    async def reaches(self, position: Position, timeout: float = 20) -> None:
        """Waits until a position is published."""

        async def reached() -> bool:
            return await self.head() >= position

        await eventually(reached, timeout, message=f"{position} in the stream")

    async def messages(self) -> list[Streamed]:
        """Everything that it holds now."""
        info = await self._jetstream.stream_info(await self._name())
        if not info.state.messages:
            return []
        found: list[Streamed] = []
        subscription = await self._jetstream.subscribe(
            "",
            stream=await self._name(),
            ordered_consumer=True,
            config=api.ConsumerConfig(ack_policy=api.AckPolicy.NONE),
        )
        while not found or found[-1].sequence < info.state.last_seq:
            message = await subscription.next_msg(timeout=5)
            headers = message.headers or {}
            found.append(
                Streamed(
                    message.metadata.sequence.stream,
                    parse_position(headers[POSITION]),
                    parse_position(headers[PREVIOUS]),
                    headers["Nats-Msg-Id"],
                )
            )
        await subscription.unsubscribe()
        return found

    async def check(self, log: Sequence[Stored], *, whole: bool = True) -> None:
        """It holds the log, once and in order, each message naming the event before it; ``whole``: from the first."""
        if log:
            await self.reaches(log[-1].position)
        found = await self.messages()
        assert [one.sequence for one in found] == list(range(found[0].sequence, found[0].sequence + len(found)))
        kept = list(log) if whole else [event for event in log if event.position >= found[0].position]
        assert [one.position for one in found] == [event.position for event in kept]
        assert [one.message_id for one in found] == [f"{e.position.prepare}-{e.event_id}" for e in kept]
        before = {event.position: one.position for one, event in zip([None, *log], log, strict=False) if one}
        assert [one.previous for one in found] == [before.get(event.position, NOTHING) for event in kept]


async def gone(processes: Sequence[psutil.Process], timeout: float = 20) -> None:
    """Waits until none of the processes is left."""

    def left() -> bool:
        return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)

    await eventually(left, timeout, message="the end of all processes")


def family(pid: int) -> list[psutil.Process]:
    """All processes below one."""
    return psutil.Process(pid).children(recursive=True)


async def together(*work: Any) -> None:
    """Run all at the same time; the first failure ends the others."""
    async with asyncio.TaskGroup() as group:
        for one in work:
            group.create_task(one)
