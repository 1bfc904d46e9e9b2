"""Reads that hang leave room for publishers: what is appended elsewhere is still delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg

from orisun_api import eventstore_pb2 as pb
from orisun_server.settings import Settings
from orisun_server.storage.database import Database
from orisun_server.storage.names import BoundaryNames
from tests.harness import ADMIN, Connection, eventually


async def test_reads_that_hang_do_not_hold_up_delivery(
    database: Database,
    make_settings: Callable[..., Settings],
    make_server: Callable[[Settings], Awaitable[Connection]],
) -> None:
    settings = make_settings("stuck", "lively", pg_read_max_open_conns=8)
    stuck, lively = settings.boundaries[:2]
    server = await make_server(settings)
    event = pb.EventToSave(event_id="e", event_type="Happened", data="{}")
    await server.events.SaveEvents(pb.SaveEventsRequest(boundary=stuck.name, events=[event]), metadata=ADMIN)
    names = BoundaryNames(stuck.schema, stuck.name)
    request = pb.GetEventsRequest(boundary=stuck.name, count=1)
    async with database.write.acquire() as locking, locking.transaction():
        await locking.execute(f"LOCK TABLE {names.q_events} IN ACCESS EXCLUSIVE MODE")
        reads = [asyncio.ensure_future(_read(server, request)) for _ in range(20)]
        await eventually(lambda: _waiting(database, names))
        subscribe = pb.CatchUpSubscribeToEventStoreRequest(boundary=lively.name, subscriber_name="s")
        await server.events.SaveEvents(pb.SaveEventsRequest(boundary=lively.name, events=[event]), metadata=ADMIN)
        published = f"SELECT global_id FROM {BoundaryNames(lively.schema, lively.name).q_published}"
        await eventually(lambda: _published(database, published))
        assert not any(read.done() for read in reads)
    answers = await asyncio.gather(*reads)
    assert {len(answer.events) for answer in answers} == {1}
    stream = server.events.CatchUpSubscribeToEvents(subscribe, metadata=ADMIN)
    assert (await stream.read()).event_id == "e"
    stream.cancel()


async def _read(server: Connection, request: pb.GetEventsRequest) -> pb.GetEventsResponse:
    answer: pb.GetEventsResponse = await server.events.GetEvents(request, metadata=ADMIN)
    return answer


async def _waiting(database: Database, names: BoundaryNames) -> bool:
    """Whether as many reads wait for the table as may use a connection."""
    waiting = "SELECT count(*) FROM pg_locks WHERE relation = $1::text::regclass AND NOT granted"
    async with asyncio.timeout(30):
        try:
            return bool(await database.admin.fetchval(waiting, names.q_events) >= 3)
        except asyncpg.PostgresError:
            return False


async def _published(database: Database, sql: str) -> bool:
    return bool(await database.admin.fetchval(sql) == 0)
