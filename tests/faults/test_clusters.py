"""Several servers of one store share the work, with one NATS or with a JetStream cluster of their own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from orisun_server.embedded.nats import _USER as USER
from orisun_server.settings import Settings
from tests.faults.checker import check_delivered
from tests.faults.clients import TRANSPORT, Client, Follower, store, told
from tests.faults.parts import Stream, publishers
from tests.harness import ServerProcess, eventually, free_port

pytestmark = pytest.mark.fault

MakeSettings = Callable[..., Settings]


async def test_two_servers_share_the_boundaries(make_settings: MakeSettings) -> None:
    settings = make_settings(*"abcde", node_ttl=3)
    async with contextlib.AsyncExitStack() as stack:
        first, servers = await stack.enter_async_context(store(settings))
        clients = [first]
        for boundary in settings.boundaries[1:-1]:
            clients.append(await stack.enter_async_context(Client(boundary.name, *servers)))
        followers = [await stack.enter_async_context(Follower(client, first=n)) for n, client in enumerate(clients)]
        streams = [await stack.enter_async_context(Stream(settings, n)) for n in range(len(clients))]
        holders = await publishers(settings, first.endpoints)
        assert sorted(Counter(holders.values()).values()) == [3, 3]
        async with contextlib.AsyncExitStack() as loads:
            for client in clients:
                await loads.enter_async_context(client.load(2, pause=0.05))
            await servers[0].kill()
            killed = time.monotonic()
            await publishers(settings, first.endpoints[1:], fair=False)
            print(f"all boundaries taken over after {time.monotonic() - killed:.2f} s")
            assert time.monotonic() - killed < 7
            await servers[0].start()
            holders = await publishers(settings, first.endpoints)
            assert sorted(Counter(holders.values()).values()) == [3, 3]
        for client, follower, stream in zip(clients, followers, streams, strict=True):
            log = await client.log()
            client.history.check(log)
            await follower.has(len(log))
            check_delivered(log, follower.events)
            await stream.check(log)


@contextlib.asynccontextmanager
async def jetstream_cluster(
    settings: Settings, directory: Path, started: int = 3
) -> AsyncIterator[tuple[Client, list[ServerProcess]]]:
    """Three servers on one machine, as the documents' example of three nodes has them."""
    ports = [free_port() for _ in range(3)]
    servers = []
    for number, port in enumerate(ports, 1):
        environ = TRANSPORT | {
            "ORISUN_NATS_URL": "",
            "ORISUN_NATS_PORT": str(free_port()),
            "ORISUN_NATS_SERVER_NAME": f"orisun-node-{number}",
            "ORISUN_NATS_STORE_DIR": str(directory / f"node{number}"),
            "ORISUN_NATS_CLUSTER_ENABLED": "true",
            "ORISUN_NATS_CLUSTER_NAME": "orisun-cluster",
            "ORISUN_NATS_CLUSTER_HOST": "127.0.0.1",
            "ORISUN_NATS_CLUSTER_PORT": str(port),
            "ORISUN_NATS_CLUSTER_USERNAME": "nats",
            "ORISUN_NATS_CLUSTER_PASSWORD": "between us",
            "ORISUN_NATS_CLUSTER_ROUTES": ",".join(f"nats://127.0.0.1:{other}" for other in ports if other != port),
        }
        servers.append(ServerProcess(settings, environ))
    async with contextlib.AsyncExitStack() as stack:
        for server in servers:
            stack.push_async_callback(server.close)
        await asyncio.gather(*(server.start() for server in servers[:started]))
        client = await stack.enter_async_context(Client(settings.boundaries[0].name, *servers))
        with told(servers):
            yield client, servers


async def is_live(settings: Settings, client: Client, followers: list[Follower], beside: ServerProcess) -> bool:
    """Whether an event comes through NATS, as one of the servers has it, and reaches everybody soon."""
    counts = [len(follower.events) for follower in followers]
    began = time.monotonic()
    position = await client.save({"mark": "1"})
    for follower, count in zip(followers, counts, strict=True):
        await follower.has(count + 1)
    if time.monotonic() - began > 0.3:
        return False
    async with Stream(settings, url=nats_of(beside)) as stream:
        return await stream.head() >= position


async def test_three_servers_with_a_jetstream_cluster(make_settings: MakeSettings, data_dir: Path) -> None:
    """While the cluster forms it has room for one copy of a stream; soon there are three, and one may be lost."""
    settings = make_settings(node_ttl=2)
    async with contextlib.AsyncExitStack() as stack:
        client, servers = await stack.enter_async_context(jetstream_cluster(settings, data_dir, started=2))
        followers = [await stack.enter_async_context(Follower(client, first=n)) for n in range(3)]
        await eventually(lambda: is_live(settings, client, followers, servers[0]), 60, message="live delivery on two")
        async with Stream(settings, url=nats_of(servers[0])) as stream:
            assert not await stream.is_complete()
            await servers[2].start()
            await eventually(stream.is_complete, 30, message="three copies")
        for number in range(2):
            async with client.load(6) as load:
                await load.more(50)
                await servers[number].kill()
                killed = time.monotonic()
                await load.more(100)
                appended = time.monotonic() - killed
            await complete(client, followers)
            delivered = time.monotonic() - killed
            other = servers[number - 1]
            await eventually(
                lambda o=other: is_live(settings, client, followers, o), 30, message="live delivery on two of three"
            )
            print(
                f"one of three killed: 100 events appended after {appended:.2f} s, delivered after {delivered:.2f} s,"
                f" live again after {time.monotonic() - killed:.2f} s"
            )
            await servers[number].start()
        await eventually(
            lambda: is_live(settings, client, followers, servers[2]), 30, message="live delivery on three nodes"
        )
        await complete(client, followers)
        async with Stream(settings, url=nats_of(servers[0])) as stream:
            await stream.check(await client.log(), whole=False)
            await eventually(stream.is_complete, 30, message="three copies")
        assert "Traceback" not in "".join(server.logs for server in servers)


def nats_of(server: ServerProcess) -> str:
    """The URL of its embedded NATS."""
    secret = (Path(server._environ["ORISUN_NATS_STORE_DIR"]) / "credentials").read_text().strip()
    return f"nats://{USER}:{secret}@127.0.0.1:{server._environ['ORISUN_NATS_PORT']}"


async def complete(client: Client, followers: list[Follower]) -> None:
    """Everybody has everything."""
    log = await client.log()
    client.history.check(log)
    for follower in followers:
        await follower.has(len(log))
        check_delivered(log, follower.events)
