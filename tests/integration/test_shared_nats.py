"""Two stores with boundaries of one name share a NATS, and neither sees the other's events."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from orisun_api import eventstore_pb2 as pb
from orisun_server.setting_types import BoundarySetting
from orisun_server.settings import Settings
from tests.harness import ADMIN, Connection


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
