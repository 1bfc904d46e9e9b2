"""PostgreSQL that answers nothing, behind a network that drops everything or on a machine that was frozen."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from orisun_api import admin_pb2, admin_pb2_grpc
from orisun_api import eventstore_pb2 as pb
from orisun_server.settings import Settings
from tests.faults.checker import Stored, check_delivered
from tests.faults.clients import Client, Code, Endpoint, Follower, query_of, save_request, store
from tests.faults.parts import PostgresServer, Stream
from tests.harness import ADMIN, eventually
from tests.proxy import PostgresProxy

pytestmark = pytest.mark.fault

MakeSettings = Callable[..., Settings]
#: Clients would wait so long; what they get instead takes a few seconds to find out, and afterwards no time.
DEADLINE, SOON, AT_ONCE = 40, 12, 2
ENDS = "PostgreSQL does not answer now; "


async def outcome(call: Awaitable[object]) -> tuple[Code, str, float]:
    """Status, details and how many seconds it took."""
    began = time.monotonic()
    try:
        await call
        return Code.OK, "", time.monotonic() - began
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or "", time.monotonic() - began


def all_kinds(client: Client, append: pb.SaveEventsRequest) -> dict[str, Awaitable[object]]:
    """A call of each kind that PostgreSQL is asked for."""
    boundary, events = client.boundary, client.endpoints[0].events
    # Any: the generated stubs are typed for synchronous channels
    admin: Any = admin_pb2_grpc.AdminStub(client.endpoints[0].channel)
    page = pb.GetEventsRequest(boundary=boundary, count=5)
    latest = pb.GetLatestByCriteriaRequest(boundary=boundary, criteria=query_of([{"n": "1"}]).criteria)
    following = pb.CatchUpSubscribeToEventStoreRequest(boundary=boundary, subscriber_name=secrets.token_hex(4))
    count = admin_pb2.GetEventCountRequest(boundary=boundary)
    index = pb.DropIndexRequest(boundary=boundary, name="nothing")
    options: dict[str, Any] = {"metadata": ADMIN, "timeout": DEADLINE}
    return {
        "SaveEvents": events.SaveEvents(append, **options),
        "GetEvents": events.GetEvents(page, **options),
        "GetLatestByCriteria": events.GetLatestByCriteria(latest, **options),
        "CatchUpSubscribeToEvents": events.CatchUpSubscribeToEvents(following, **options).read(),
        "ListUsers": admin.ListUsers(admin_pb2.ListUsersRequest(), **options),
        "GetEventCount": admin.GetEventCount(count, **options),
        "DropIndex": admin.DropIndex(index, **options),
    }


async def outcomes(calls: dict[str, Awaitable[object]]) -> dict[str, tuple[Code, str, float]]:
    return dict(zip(calls, await asyncio.gather(*map(outcome, calls.values())), strict=True))


def unavailable(found: dict[str, tuple[Code, str, float]], within: float) -> None:
    print({name: round(took, 2) for name, (_, _, took) in found.items()})
    for name, (code, details, took) in found.items():
        assert code == Code.UNAVAILABLE, (name, code, details)
        # a server that has lost its hold on names says so of a new one
        ends = (ENDS, "this server has lost its leases") if name == "CatchUpSubscribeToEvents" else ENDS
        assert details.startswith(ends), (name, details)
        assert took < within, (name, took)


async def says(endpoint: Endpoint, status: str) -> bool:
    return await endpoint.health() == status


async def test_every_kind_of_call_ends_soon_behind_a_network_that_drops_everything(settings: Settings) -> None:
    ids = [secrets.token_hex(12)]
    async with (
        PostgresProxy(settings) as proxy,
        store(proxy.settings, 1) as (client, (server,)),
        Stream(settings) as stream,
    ):
        for first in range(0, 5000, 1000):
            await client.save(*({"n": str(n)} for n in range(first, first + 1000)))

        def freeze(_: Stored) -> None:
            proxy.freeze()

        async with Follower(client) as live, Follower(client, on_event=freeze) as replaying:
            await replaying.has(1)
            append = save_request(client.boundary, ids, [{"n": "new"}])
            unavailable(await outcomes(all_kinds(client, append)), SOON)
            assert await client.endpoints[0].health() == "NOT_SERVING"
            unavailable(await outcomes(all_kinds(client, append)), AT_ONCE)
            for follower in (live, replaying):
                await eventually(lambda one=follower: one.endings, SOON)
                assert follower.endings[0][0] == Code.UNAVAILABLE, follower.endings
            replaying._on_event = None
            proxy.thaw()
            healed = time.monotonic()
            await eventually(lambda: says(client.endpoints[0], "SERVING"), SOON, message="SERVING")
            # the same call again, as the message says; the one before it may have been stored
            again = await client.endpoints[0].events.SaveEvents(append, metadata=ADMIN, timeout=SOON)
            assert again == await client.endpoints[0].events.SaveEvents(append, metadata=ADMIN, timeout=SOON)

            async def works() -> bool:
                found = await outcomes(all_kinds(client, append))
                return {code for code, _, _ in found.values()} == {Code.OK}

            # subscriptions wait until the server has joined the others again
            await eventually(works, SOON, message="calls of all kinds")
            print(f"works {time.monotonic() - healed:.2f} s after the network")
            log = await client.log()
            assert [event.event_id for event in log].count(ids[0]) == 1
            assert len(log) == 5001
            await live.has(len(log))
            await replaying.has(len(log))
            check_delivered(log, live.events)
            check_delivered(log, replaying.events)
            await stream.reaches(log[-1].position)
        assert f"PostgreSQL at {proxy.settings.pg_host}" in server.logs


async def test_a_frozen_postgresql_under_load(make_settings: MakeSettings, own_postgres: PostgresServer) -> None:
    """What was sent before goes on where it was when it thaws, beside the repetitions; all is stored once."""
    settings = make_settings(**own_postgres.overrides)
    async with store(settings) as (client, _), Stream(settings) as stream, Follower(client) as follower:
        async with client.load(6) as load:
            await load.more(50)
            own_postgres.signal(signal.SIGSTOP)
            try:
                for endpoint in client.endpoints:
                    await eventually(lambda e=endpoint: says(e, "NOT_SERVING"), SOON, message="NOT_SERVING")
                refused = client.errors[Code.UNAVAILABLE]
                await eventually(lambda: client.errors[Code.UNAVAILABLE] > refused + 50)
            finally:
                own_postgres.signal(signal.SIGCONT)
            await load.more(50)
        assert set(client.errors) == {Code.UNAVAILABLE}, client.errors
        log = await client.log()
        client.history.check(log)
        assert len(client.history.attempts) == len(client.history.acknowledged)
        await follower.has(len(log))
        check_delivered(log, follower.events)
        await stream.check(log)
