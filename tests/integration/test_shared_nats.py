"""Two stores with boundaries of one name share a NATS, and neither sees the other's events."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

import asyncpg

from orisun_api import eventstore_pb2 as pb
from orisun_server.setting_types import BoundarySetting
from orisun_server.settings import Settings
from tests.harness import ADMIN, Connection, eventually
from tests.integration.web import running


async def test_stores_that_share_a_nats_keep_apart(
    make_settings: Callable[..., Settings], make_server: Callable[[Settings], Awaitable[Connection]]
) -> None:
    name = f"orders_{secrets.token_hex(4)}"
    servers = []
    for _ in range(2):
        settings = make_settings()
        boundaries = (BoundarySetting(name, "", f"shared_{secrets.token_hex(4)}"), settings.boundaries[-1])
        servers.append(await make_server(settings.model_copy(update={"boundaries": boundaries})))
    subscribe = pb.CatchUpSubscribeToEventStoreRequest(boundary=name, subscriber_name="s")
    streams = [server.events.CatchUpSubscribeToEvents(subscribe, metadata=ADMIN) for server in servers]
    for number in range(20):
        for which, server in enumerate(servers):
            event = pb.EventToSave(event_id=f"{which}-{number}", event_type="Happened", data="{}")
            await server.events.SaveEvents(pb.SaveEventsRequest(boundary=name, events=[event]), metadata=ADMIN)
    for which, stream in enumerate(streams):
        got = [(await stream.read()).event_id for _ in range(20)]
        assert got == [f"{which}-{number}" for number in range(20)]
        stream.cancel()


async def test_stores_of_one_name_do_not_answer_for_each_other(
    make_settings: Callable[..., Settings], pg_dsn: str
) -> None:
    """Admin schema and boundaries are called the same, in two databases."""
    settings, other = make_settings(), f"other_{secrets.token_hex(4)}"
    database = await asyncpg.connect(pg_dsn)
    try:
        await database.execute(f"CREATE DATABASE {other}")
        async with running(settings) as one, running(settings.model_copy(update={"pg_name": other})) as two:
            connection = Connection(two.address)
            key = (settings.boundaries[0].name, "follower")
            request = pb.CatchUpSubscribeToEventStoreRequest(boundary=key[0], subscriber_name=key[1])
            stream = connection.events.CatchUpSubscribeToEvents(request, metadata=ADMIN)
            await stream.initial_metadata()
            calls = [app.web._state.parts.roll_call for app in (one, two) if app.web._state.parts is not None]
            await eventually(lambda: calls[1].ask([key]))
            await eventually(lambda: all(app.telemetry.sampler.nats.connected for app in (one, two)))
            assert await calls[0].ask([key]) == {}
            stream.cancel()
            await connection.close()
        await database.execute(f"DROP DATABASE {other}")
    finally:
        await database.close()
