"""More than a server can take: what waits is bounded in number and in memory, and the rest is refused at once."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter

import grpc
import psutil
import pytest

from orisun_api import eventstore_pb2 as pb
from orisun_server.settings import Settings
from tests.faults.clients import Code
from tests.faults.parts import connected, names_of
from tests.harness import ADMIN, Connection, ServerProcess, eventually

pytestmark = pytest.mark.fault

MIB = 1024 * 1024
#: Calls of one MiB, and the memory that they may wait in.
CALLS, ROOM = 400, 32 * MIB


async def test_a_queue_that_is_full_bounds_memory(settings: Settings, transport: dict[str, str]) -> None:
    """400 MiB of appends come while PostgreSQL takes none."""
    settings = settings.model_copy(update={"append_queue_bytes": ROOM})
    name, text = settings.boundaries[0].name, json.dumps({"text": "x" * MIB})
    names = names_of(settings)
    answers: Counter[Code] = Counter()

    async def save(connection: Connection) -> None:
        event = pb.EventToSave(event_id=secrets.token_hex(12), event_type="Large", data=text)
        request = pb.SaveEventsRequest(boundary=name, events=[event])
        try:
            await connection.events.SaveEvents(request, metadata=ADMIN, timeout=120)
            answers[Code.OK] += 1
        except grpc.aio.AioRpcError as error:
            answers[error.code()] += 1

    async with ServerProcess(settings, transport) as server:
        connections = [Connection(server.address) for _ in range(4)]
        try:
            await asyncio.gather(*map(save, connections))
            process = psutil.Process(server.pid)
            before = process.memory_info().rss
            most = before
            async with connected(settings) as postgres, postgres.transaction():
                await postgres.execute("SELECT pg_advisory_xact_lock($1)", names.lock_key)
                calls = [asyncio.ensure_future(save(connections[number % 4])) for number in range(CALLS)]

                def refused() -> bool:
                    nonlocal most
                    most = max(most, process.memory_info().rss)
                    return answers[Code.RESOURCE_EXHAUSTED] >= CALLS - ROOM // MIB

                began = time.monotonic()
                await eventually(refused, 60, 0.01, "all beyond the room are refused while the others wait")
                took, grown = time.monotonic() - began, (most - before) // MIB
                print(f"all that came too much is refused after {took:.1f} s; grown by {grown} MiB")
                # they are not let in: it is those that came first who wait
                assert answers[Code.OK] == 4
            await asyncio.gather(*calls)
            assert answers[Code.OK] >= 4 + ROOM // MIB // 2
            assert answers.keys() == {Code.OK, Code.RESOURCE_EXHAUSTED}
            # and there is room again
            stored, again = answers[Code.OK], ROOM // MIB // 2
            await asyncio.gather(*(save(connections[number % 4]) for number in range(again)))
            assert answers[Code.OK] == stored + again
            # all of it comes, and is there as it came until its turn; what waits is there in several forms
            assert most - before < 1.5 * CALLS * MIB + 4 * ROOM
        finally:
            await asyncio.gather(*(connection.close() for connection in connections))
