"""Servers that die or stop while they publish: nothing skipped, nothing twice, soon published by another one."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import pytest

from orisun_server.settings import Settings
from tests.faults.checker import check_delivered
from tests.faults.clients import Client, Follower, store
from tests.faults.parts import Stream, checkpoint_of, connected, names_of, publishers
from tests.harness import ServerProcess, eventually, is_quick

pytestmark = pytest.mark.fault

MakeSettings = Callable[..., Settings]


async def all_is_well(client: Client, stream: Stream, *followers: Follower) -> None:
    """Exactly what was acknowledged is stored, delivered and published, once and in order."""
    log = await client.log()
    client.history.check(log)
    for follower in followers:
        await follower.has(len(log))
        check_delivered(log, follower.events)
    await stream.check(log)


async def until_published(client: Client, stream: Stream, first: int = 0) -> None:
    """Append and wait until it is in the stream."""
    await stream.reaches(await client.save({"mark": "1"}, first=first, timeout=2))


def times_acquired(server: ServerProcess, boundary: str) -> int:
    return server.logs.count(f"Successfully acquired lock for boundary: {boundary}")


async def test_killed_between_publish_and_checkpoint(settings: Settings) -> None:
    """A lock on the checkpoint's row makes sure that it is between."""
    names = names_of(settings)
    async with (
        store(settings) as (client, servers),
        Stream(settings) as stream,
        Follower(client) as one,
        Follower(client, first=1) as other,
        connected(settings) as connection,
    ):
        holder = (await publishers(settings, client.endpoints))[client.boundary]
        await until_published(client, stream)
        async with connection.transaction():
            await connection.execute(f"SELECT FROM {names.q_published} FOR UPDATE")
            before, _ = await checkpoint_of(connection, names)
            async with client.load() as load:
                await load.more(50)
                await eventually(lambda: stream.is_beyond(before), message="published, without a checkpoint")
                await servers[holder].kill()
                killed = time.monotonic()
                # nor may what it sent to PostgreSQL be executed later
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()"
                )
        assert (await checkpoint_of(connection, names))[0] == before
        async with client.load() as load:
            await load.more(50)
        await stream.reaches((await client.log())[-1].position)
        took = time.monotonic() - killed
        # the names of those who were subscribed there are free as soon
        for follower in (one, other):
            await follower.has(len(await client.log()))
        freed = time.monotonic() - killed
        print(f"hand-over after SIGKILL: {took:.2f} s, subscribed again under the same names after {freed:.2f} s")
        assert took < 10
        assert freed < 10
        assert any((one, other)[holder].endings), "it was not subscribed at the server that was killed"
        await all_is_well(client, stream, one, other)


async def test_killed_at_any_moment(make_settings: MakeSettings) -> None:
    settings = make_settings(node_ttl=1.5)
    chance = random.Random(time.time_ns())
    async with (
        store(settings) as (client, servers),
        Stream(settings) as stream,
        Follower(client) as one,
        Follower(client, first=1) as other,
    ):
        async with client.load(6) as load:
            for _ in range(3):
                holder = (await publishers(settings, client.endpoints, fair=False))[client.boundary]
                await load.more(20)
                await until_published(client, stream)
                await asyncio.sleep(chance.random() * 0.3)  # any moment
                await servers[holder].kill()
                await servers[holder].start()
        await all_is_well(client, stream, one, other)


async def test_a_clean_stop_hands_over_at_once(settings: Settings) -> None:
    async with (
        store(settings) as (client, servers),
        Stream(settings) as stream,
        Follower(client) as one,
        Follower(client, first=1) as other,
    ):

        async def hands_over() -> float:
            holder = (await publishers(settings, client.endpoints))[client.boundary]
            successor = 1 - holder
            await until_published(client, stream)
            count = times_acquired(servers[successor], client.boundary)
            began = time.monotonic()
            stopping = asyncio.create_task(servers[holder].stop())
            await eventually(lambda: times_acquired(servers[successor], client.boundary) > count, interval=0.01)
            seconds = time.monotonic() - began
            await until_published(client, stream, first=successor)
            took = time.monotonic() - began
            print(f"hand-over after SIGTERM: lease {seconds:.2f} s, published {took:.2f} s")
            assert await stopping == 0
            await load.more(20)
            await servers[holder].start()
            return took

        async with client.load() as load:
            await is_quick(hands_over, 1)
        await all_is_well(client, stream, one, other)


async def test_a_stopped_server_never_holds_the_lock(settings: Settings) -> None:
    """SIGSTOP at any moment of a load of small and large calls; another server appends at once."""
    chance = random.Random(time.time_ns())
    slowest = 0.0
    async with (
        store(settings) as (client, servers),
        Client(client.boundary, servers[0]) as there,
        Client(client.boundary, servers[1]) as beside,
    ):
        there.history = beside.history = client.history
        async with there.load(8, pause=0), there.load(2, padding=200_000, pause=0) as load:
            for _ in range(40):
                await load.more(1)
                await asyncio.sleep(chance.random() / 20)  # any moment
                await servers[0].sigstop()
                for _ in range(2):
                    began = time.monotonic()
                    await beside.save({"beside": "1"})
                    slowest = max(slowest, time.monotonic() - began)
                await servers[0].sigcont()
        print(f"slowest append beside a stopped server: {slowest:.3f} s")
        assert slowest < 2
        assert not beside.errors
        client.history.check(await client.log())


async def test_a_stopped_publisher_publishes_nothing_when_it_goes_on(make_settings: MakeSettings) -> None:
    settings = make_settings(node_ttl=1.5)
    names = names_of(settings)
    async with (
        store(settings) as (client, servers),
        Stream(settings) as stream,
        connected(settings) as connection,
        Follower(client) as one,
        Follower(client, first=1) as other,
    ):
        epochs = []
        for _ in range(3):
            holder = (await publishers(settings, client.endpoints))[client.boundary]
            async with client.load(6, timeout=2) as load:
                await load.more(30)
                await until_published(client, stream)
                await servers[holder].sigstop()
                epoch = (await checkpoint_of(connection, names))[1]

                async def succeeded(epoch: int = epoch) -> bool:
                    return (await checkpoint_of(connection, names))[1] > epoch

                await eventually(succeeded, message="a successor")
                await load.more(30)
                await until_published(client, stream, first=1 - holder)
                await servers[holder].sigcont()
                await load.more(60)
            epochs.append(epoch)
            await until_published(client, stream)
        assert epochs == sorted(set(epochs))
        await all_is_well(client, stream, one, other)
