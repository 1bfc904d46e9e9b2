"""NATS killed, wiped and hung under load: it decides how soon events are delivered, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable

import pytest
from pydantic import SecretStr

from orisun_server.settings import Settings
from tests.faults.checker import check_delivered
from tests.faults.clients import Client, Follower, store
from tests.faults.parts import Stream
from tests.harness import eventually
from tests.integration.nodes import NatsServer

pytestmark = pytest.mark.fault

MakeSettings = Callable[..., Settings]


class Watch:
    """Reads and asks for health all the time; any refusal ends it. ``async with``."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.rounds = 0

    async def _look(self) -> None:
        while True:
            for number, endpoint in enumerate(self._client.endpoints):
                assert await endpoint.health() == "SERVING"
                await self._client.page(50, desc=True, first=number)
                await self._client.latest([{"w": "1"}], first=number)
            self.rounds += 1
            await asyncio.sleep(0.05)

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
        else:
            self._task.result()


async def is_live(client: Client, follower: Follower, stream: Stream) -> None:
    """Waits until events come through NATS again; then they come at once."""
    await stream.reaches(await client.save({"mark": "1"}))
    await follower.has(len(await client.log()))
    delays = []
    for _ in range(15):
        count = len(follower.events)
        began = time.monotonic()
        position = await client.save({"mark": "1"})
        await follower.has(count + 1)
        delays.append(time.monotonic() - began)
        assert follower.events[-1].position == position
    print(f"live again: delivered in {sorted(delays)[7]:.3f} s")
    assert sorted(delays)[7] < 0.3


async def test_killed_wiped_deleted_and_hung_under_load(make_settings: MakeSettings, own_nats: NatsServer) -> None:
    settings = make_settings(nats_url=SecretStr(own_nats.url))
    async with (
        store(settings) as (client, _),
        Follower(client) as one,
        Follower(client, first=1, criteria=[{"n": "0"}]) as other,
        Watch(client) as watch,
    ):
        async with client.load() as load:
            await load.more(100)
            for fault in ("killed", "wiped", "deleted", "hung"):
                if fault == "hung":
                    own_nats.signal(signal.SIGSTOP)
                elif fault == "deleted":
                    async with Stream(settings) as stream:
                        await stream.delete()
                else:
                    await own_nats.kill()
                if fault != "deleted":
                    # long enough for publishers to be given up
                    until = time.monotonic() + 3
                    while time.monotonic() < until:
                        await load.more(20)
                before = len(one.events)
                await load.more(20)
                await one.has(before + 20)
                if fault == "wiped":
                    own_nats.wipe()
                if fault == "hung":
                    own_nats.signal(signal.SIGCONT)
                elif fault != "deleted":
                    await own_nats.start()
                await load.more(50)
                async with Stream(settings) as stream:
                    await stream.reaches(await client.save({"mark": "1"}))
                    await load.more(50)
        async with Stream(settings) as stream:
            await is_live(client, one, stream)
            log = await client.log()
            client.history.check(log)
            await stream.check(log, whole=False)
        assert not client.errors, "an append or a read failed"
        assert watch.rounds > 10
        check_delivered(log, one.events)
        wanted = [event for event in log if event.tags.get("n") == "0"]
        await other.has(len(wanted))
        check_delivered(log, other.events, [{"n": "0"}])
        assert not one.endings, "a subscription ended"
        assert not other.endings


@pytest.mark.parametrize("size", [0, 1 << 15])
async def test_writes_that_fail_for_a_while(make_settings: MakeSettings, own_nats: NatsServer, size: int) -> None:
    """nats-server gives a stream up at the first failed write, and never takes that one up again: it is made anew."""
    settings = make_settings(nats_url=SecretStr(own_nats.url))
    async with store(settings) as (client, _), Follower(client) as follower, Watch(client):
        async with client.load() as load:
            await load.more(100)
            own_nats.limit_files(size)

            async def stands_still() -> bool:
                """Of what is stored now, nothing is published within a second."""
                async with Stream(settings) as stream:
                    position = await client.save({"mark": "1"})
                    with contextlib.suppress(AssertionError):
                        await stream.reaches(position, timeout=1)
                        return False
                    return True

            await eventually(stands_still, 30, message="writes that fail")
            before = len(follower.events)
            await load.more(20)
            await follower.has(before + 20)
            own_nats.limit_files(None)
            await load.more(50)
        async with Stream(settings) as stream:
            await is_live(client, follower, stream)
        log = await client.log()
        client.history.check(log)
        check_delivered(log, follower.events)
        assert not client.errors, "an append or a read failed"
        assert not follower.endings, "a subscription ended"


async def test_servers_that_start_without_nats(make_settings: MakeSettings, own_nats: NatsServer) -> None:
    await own_nats.kill()
    settings = make_settings(nats_url=SecretStr(own_nats.url))
    async with store(settings) as (client, _), Follower(client) as one, Follower(client, first=1) as other:
        async with client.load() as load, Watch(client):
            await load.more(50)
        await one.has(len(await client.log()))
        await own_nats.start()
        async with Stream(settings) as stream:
            await is_live(client, one, stream)
            log = await client.log()
            client.history.check(log)
            await other.has(len(log))
            check_delivered(log, one.events)
            check_delivered(log, other.events)
            await stream.check(log)
        assert not client.errors
        assert not one.endings
