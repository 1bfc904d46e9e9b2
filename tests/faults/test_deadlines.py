"""Clients that lose patience by the thousand, and clients that vanish, leave nothing behind."""

from __future__ import annotations

import asyncio
import random
import secrets
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import psutil
import pytest

from orisun_api import eventstore_pb2 as pb
from orisun_server.settings import Settings
from orisun_server.storage.names import quote
from tests.faults.checker import Attempt, check_delivered
from tests.faults.clients import NOTHING, Client, Code, Endpoint, Follower, query_of, save_request, store
from tests.faults.parts import connected, names_of
from tests.harness import ADMIN, eventually

pytestmark = pytest.mark.fault

CALLS, NAMES, QUEUE = 500, 20, 32
IMPATIENT = frozenset({Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.CANCELLED, Code.ALREADY_EXISTS})
#: So that the pools are full early on.
FEW_CONNECTIONS = {f"pg_{pool}_max_{kind}_conns": 5 for pool in ("write", "read", "admin") for kind in ("open", "idle")}


class Storm:
    """Calls of all kinds with deadlines about as long as they take; ``requests`` holds the appends among them."""

    def __init__(self, boundary: str, endpoint: Endpoint) -> None:
        self._boundary, self._endpoint = boundary, endpoint
        self._chance = random.Random(1)
        self.requests: list[pb.SaveEventsRequest] = []
        self.codes: Counter[str] = Counter()

    async def blow(self, calls: int) -> None:
        room = asyncio.Semaphore(10)

        async def one() -> None:
            async with room:
                await self._call()

        await asyncio.gather(*(one() for _ in range(calls)))

    async def _call(self) -> None:
        boundary, events, chance = self._boundary, self._endpoint.events, self._chance
        timeout = chance.choice((0.001, 0.003, 0.006, 0.01, 0.02))
        kind = chance.random()
        try:
            if kind < 0.5:
                ids = [secrets.token_hex(12) for _ in range(chance.choice((1, 1, 5)))]
                self.requests.append(save_request(boundary, ids, [{"n": "1"}] * len(ids)))
                await events.SaveEvents(self.requests[-1], metadata=ADMIN, timeout=timeout)
            elif kind < 0.7:
                await events.GetEvents(
                    pb.GetEventsRequest(boundary=boundary, count=500), metadata=ADMIN, timeout=timeout
                )
            elif kind < 0.8:
                request = pb.GetLatestByCriteriaRequest(boundary=boundary, criteria=query_of([{"n": "1"}]).criteria)
                await events.GetLatestByCriteria(request, metadata=ADMIN, timeout=timeout)
            else:
                async for _ in events.CatchUpSubscribeToEvents(
                    subscribe(boundary, chance.randrange(NAMES)), metadata=ADMIN, timeout=timeout
                ):
                    pass
            self.codes["OK"] += 1
        except grpc.aio.AioRpcError as error:
            if error.code() not in IMPATIENT and not lost_connection(error):
                raise
            self.codes[error.code().name] += 1


def lost_connection(error: grpc.aio.AioRpcError) -> bool:
    """Whether the connection ended under a call; gRPC makes another one.

    The native transport ends one whose client resets streams faster than it can count them (CVE-2023-44487). Who reads
    sees why; who writes at that moment sees only that nobody takes it any more.
    """
    ends = ("too_many_resets", "Broken pipe", "Connection reset", "Socket closed")
    return error.code() == Code.UNAVAILABLE and any(end in (error.details() or "") for end in ends)


def subscribe(boundary: str, number: int) -> pb.CatchUpSubscribeToEventStoreRequest:
    return pb.CatchUpSubscribeToEventStoreRequest(boundary=boundary, subscriber_name=f"name-{number}")


@asynccontextmanager
async def held(settings: Settings) -> AsyncIterator[None]:
    """Holds the boundary's lock, so that appends wait."""
    names = names_of(settings)
    async with connected(settings) as connection, connection.transaction():
        await connection.execute(f"SELECT pg_advisory_xact_lock({names.lock_key})")
        yield


async def names_are_free(boundary: str, endpoint: Endpoint) -> float:
    """Every name can be taken at once; seconds until the last one was."""
    began = time.monotonic()

    async def take(number: int) -> bool:
        call = endpoint.events.CatchUpSubscribeToEvents(subscribe(boundary, number), metadata=ADMIN, timeout=30)
        try:
            return bool((await call.read()).event_id)
        except grpc.aio.AioRpcError as error:
            if error.code() != Code.ALREADY_EXISTS and not lost_connection(error):
                raise
            return False
        finally:
            call.cancel()

    waits = (eventually(lambda n=n: take(n), message=f"name-{n} is free") for n in range(NAMES))
    await asyncio.gather(*waits)
    return time.monotonic() - began


async def queue_is_empty(settings: Settings, client: Client) -> None:
    """As many appends as the queue has room for are taken, and one more is refused at once."""
    async with held(settings):
        waiting = [asyncio.create_task(client.save({"n": "2"})) for _ in range(QUEUE)]
        async with connected(settings) as connection:
            await eventually(lambda: connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

        async def refused() -> bool:
            request = save_request(client.boundary, [secrets.token_hex(12)], [{"n": "3"}])
            try:
                await client.endpoints[0].events.SaveEvents(request, metadata=ADMIN, timeout=0.3)
            except grpc.aio.AioRpcError as error:
                return error.code() == Code.RESOURCE_EXHAUSTED
            return False

        await eventually(refused, message="RESOURCE_EXHAUSTED of a full queue")
        assert not any(task.done() for task in waiting)
    await asyncio.gather(*waiting)


async def test_storms_of_deadlines_leave_nothing_behind(settings: Settings, transport: dict[str, str]) -> None:
    settings = settings.model_copy(update={"append_queue_calls": QUEUE, **FEW_CONNECTIONS})
    async with (
        store(settings, 1, transport) as (client, servers),
        Follower(client) as follower,
        connected(settings) as connection,
    ):
        process = psutil.Process(servers[0].pid)
        await client.save(*({"n": "0"} for _ in range(500)))
        storm = Storm(client.boundary, client.endpoints[0])
        measured: list[tuple[int, int]] = []
        freed: list[float] = []
        for _ in range(4):
            await storm.blow(CALLS)
            async with held(settings):
                await storm.blow(CALLS // 5)
            freed.append(await names_are_free(client.boundary, client.endpoints[0]))
            measured.append((process.memory_info().rss, process.num_fds()))
            print(f"{measured[-1][0] >> 20} MiB, {measured[-1][1]} files, names free after {freed[-1]:.3f} s")
        print("answers:", dict(storm.codes))
        assert storm.codes["DEADLINE_EXCEEDED"] > CALLS
        assert storm.codes["OK"] > 0
        assert statistics.median(freed) < 2
        assert measured[-1][0] - measured[0][0] < 16 << 20
        assert measured[-1][1] - measured[0][1] < 10
        await queue_is_empty(settings, client)

        async def left() -> dict[str, Any]:
            row = await connection.fetchrow(
                "SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND state LIKE 'idle in transaction%') AS open_transactions,"
                f" (SELECT count(*) FROM {quote(settings.admin_schema)}.orisun_lease AS l"
                f" JOIN {quote(settings.admin_schema)}.orisun_node USING (node_id)"
                " WHERE l.kind = 'subscriber' AND l.name LIKE 'name-%') AS subscribers"
            )
            return {name: value for name, value in row.items() if value}

        await eventually(lambda: nothing(left()), message="nothing left")
        before = {event.event_id for event in await client.log()}
        print(f"{sum(r.events[0].event_id in before for r in storm.requests)} of {len(storm.requests)} appends stored")
        # whatever became of them: a repeat makes each certain, and stores none twice
        for request in storm.requests:
            ids = tuple(event.event_id for event in request.events)
            client.history.attempts.append(Attempt(ids, None, NOTHING, 0.0))
        repeated = storm.requests[::5]
        for number in range(0, len(repeated), QUEUE):
            await asyncio.gather(*(client.call("SaveEvents", r) for r in repeated[number : number + QUEUE]))
        log = await client.log()
        stored = {event.event_id for event in log}
        assert {event.event_id for request in repeated for event in request.events} <= stored
        refused = {event.event_id for event in log if event.tags["n"] == "3"}
        client.history.check([event for event in log if event.event_id not in refused])
        await follower.has(len(log))
        check_delivered(log, follower.events)


async def nothing(left: Any) -> bool:
    return not await left


async def test_clients_that_vanish_leave_nothing_behind(settings: Settings, transport: dict[str, str]) -> None:
    """Connections that are dropped with calls and subscriptions on them."""
    async with store(settings.model_copy(update=FEW_CONNECTIONS), 1, transport) as (client, servers):
        process = psutil.Process(servers[0].pid)
        await client.save(*({"n": "0"} for _ in range(2000)), padding=2000)
        files: list[int] = []
        freed: list[float] = []
        for _ in range(5):
            gone = [Endpoint(servers[0].address) for _ in range(5)]
            calls = []
            for number in range(NAMES):
                events = gone[number % 5].events
                page = pb.GetEventsRequest(boundary=client.boundary, count=2000)
                calls.append(events.CatchUpSubscribeToEvents(subscribe(client.boundary, number), metadata=ADMIN))
                calls.append(events.GetEvents(page, metadata=ADMIN))
            await calls[0].read()
            await asyncio.gather(*(endpoint.channel.close() for endpoint in gone))
            freed.append(await names_are_free(client.boundary, client.endpoints[0]))
            files.append(process.num_fds())
        print("files:", files)
        assert statistics.median(freed) < 2
        assert files[-1] - files[1] < 10
        await client.save({"n": "1"})
        client.history.check(await client.log())
