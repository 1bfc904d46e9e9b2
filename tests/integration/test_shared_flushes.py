"""Many callers share commits where the transport hands their calls over one at a time."""

from __future__ import annotations

import asyncio
import secrets

from orisun_api import eventstore_pb2 as pb
from orisun_server.settings import Settings
from orisun_server.storage.database import Database
from tests.faults.parts import names_of
from tests.harness import ADMIN, Connection, ServerProcess

CALLERS, APPENDS = 24, 60


async def test_many_callers_share_commits_on_grpcio(settings: Settings, database: Database) -> None:
    async with ServerProcess(settings, {"ORISUN_GRPC_TRANSPORT": "grpcio"}) as server:
        connections = [Connection(server.address) for _ in range(4)]

        async def call(number: int) -> None:
            for _ in range(APPENDS):
                events = [pb.EventToSave(event_id=secrets.token_hex(12), event_type="T")]
                request = pb.SaveEventsRequest(boundary=settings.boundaries[0].name, events=events)
                await connections[number % 4].events.SaveEvents(request, metadata=ADMIN)

        await asyncio.gather(*map(call, range(CALLERS)))
        for connection in connections:
            await connection.close()
    table = names_of(settings).q_events
    commits = await database.admin.fetchval(f"SELECT count(DISTINCT pg_transaction_id) FROM {table}")
    # 1.3 where nobody is waited for, 7 to 10 on a machine that does nothing else
    assert CALLERS * APPENDS / commits > 2.5
