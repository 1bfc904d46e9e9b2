"""Three embedded nats-servers on one machine form a JetStream cluster, as the seeds' example of three nodes does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import psutil
import pytest
import structlog
from nats.aio.client import Client
from nats.js.api import StreamConfig

from orisun_api import eventstore_pb2 as wire
from orisun_server.embedded.nats import EmbeddedNats
from orisun_server.embedded.nats_cluster import report_leader
from orisun_server.embedded.postgres import PostgresAddress
from orisun_server.embedded.process import EmbeddedError
from orisun_server.environment import load
from tests.contract.starts import fresh_database, here, routed, starts
from tests.harness import ServerProcess, eventually, free_port, stream_name

pytestmark = pytest.mark.fault


@contextlib.asynccontextmanager
async def cluster(directory: Path, password: str, size: int = 3) -> AsyncIterator[list[EmbeddedNats]]:
    ports = [free_port() for _ in range(size)]
    servers = []
    try:
        for number, port in enumerate(ports, 1):
            environ = {
                "ORISUN_NATS_PORT": str(free_port()),
                "ORISUN_NATS_SERVER_NAME": f"orisun-node-{number}",
                "ORISUN_NATS_STORE_DIR": str(directory / f"node{number}" / "nats"),
                "ORISUN_NATS_CLUSTER_ENABLED": "true",
                "ORISUN_NATS_CLUSTER_NAME": "orisun-cluster",
                "ORISUN_NATS_CLUSTER_HOST": "127.0.0.1",
                "ORISUN_NATS_CLUSTER_PORT": str(port),
                "ORISUN_NATS_CLUSTER_USERNAME": "nats",
                "ORISUN_NATS_CLUSTER_PASSWORD": password,
                "ORISUN_NATS_CLUSTER_ROUTES": ",".join(f"nats://127.0.0.1:{other}" for other in ports if other != port),
            }
            servers.append(EmbeddedNats(load(environ).settings))
            await servers[-1].start()
        yield servers
    finally:
        for server in servers:
            await server.stop()


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    client = await nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
    try:
        yield client
    finally:
        await client.close()


async def add_stream(client: Client) -> bool:
    with contextlib.suppress(nats.errors.Error):
        await client.jetstream(timeout=2).add_stream(StreamConfig(name="events", subjects=["e.>"], num_replicas=3))
        return True
    return False


async def test_three_servers_keep_a_stream_over_the_loss_of_one(data_dir: Path) -> None:
    async with cluster(data_dir, "p@ss:w/ord 'ünï\\") as servers, connected(servers[0].url) as first:
        await eventually(lambda: add_stream(first), 60, 0.2, "a leader")
        await first.jetstream().publish("e.1", b"before", timeout=10)

        killed = servers[1].pid
        assert killed is not None
        os.kill(killed, signal.SIGSTOP)  # it is not restarted at once, as after SIGKILL
        async with connected(servers[2].url) as third:

            async def published() -> bool:
                with contextlib.suppress(nats.errors.Error):
                    await third.jetstream(timeout=1).publish("e.2", b"meanwhile", headers={"Nats-Msg-Id": "2"})
                    return True
                return False

            await eventually(published, 60, 0.2, "a publish without one of three")
            os.kill(killed, signal.SIGKILL)
            await eventually(lambda: servers[1].pid not in (None, killed), 30, message="a restart")

            async def in_step() -> bool:
                with contextlib.suppress(nats.errors.Error):
                    found = (await third.jetstream(timeout=1).stream_info("events")).cluster
                    peers = (found.replicas or []) if found else []
                    return len(peers) == 2 and all(peer.current and not peer.offline for peer in peers)
                return False

            await eventually(in_step, 60, 0.2, "three replicas in step")
        async with connected(servers[1].url) as second:
            message = await second.jetstream().get_msg("events", 2)
            assert message.data == b"meanwhile"


async def test_the_port_for_the_servers_refuses_strangers_and_clients_stay_on_loopback(data_dir: Path) -> None:
    async with cluster(data_dir, "right", 1) as servers:
        text = (data_dir / "node1" / "nats" / "nats-server.conf").read_text()
        assert '"no_advertise": true' in text
        assert servers[0].pid is not None
        listening = [c.laddr.ip for c in psutil.Process(servers[0].pid).net_connections() if c.status == "LISTEN"]
        assert set(listening) == {"127.0.0.1"}
        assert len(listening) == 2
        configuration = json.loads(text)
        host, _, port = configuration["cluster"]["listen"].partition(":")
        for password, answer in (("wrong", b"Authorization Violation"), ("right", b"PONG")):
            reader, writer = await asyncio.open_connection(host, int(port))
            login = {"user": "nats", "pass": password, "cluster": "orisun-cluster", "name": "x", "server_id": "x"}
            writer.write(f"CONNECT {json.dumps(login)}\r\nPING\r\n".encode())
            received = b""
            while answer not in received:
                received += (part := await asyncio.wait_for(reader.read(4096), 30))
                assert part, received
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def test_a_cluster_without_a_leader_is_reported(data_dir: Path) -> None:
    async with cluster(data_dir, "p", 1) as servers:
        with structlog.testing.capture_logs() as logs:
            await report_leader(servers[0].url, 0.5)
    assert [entry["log_level"] for entry in logs] == ["error"]
    assert "no leader" in logs[0]["event"]


async def test_credentials_of_routes_are_nowhere_but_in_the_configuration(data_dir: Path) -> None:
    """What nats-server prints of routes is shown when it does not start."""
    environ = {
        "ORISUN_NATS_PORT": "0",
        "ORISUN_NATS_STORE_DIR": str(data_dir / "nats"),
        "ORISUN_NATS_CLUSTER_ENABLED": "true",
        "ORISUN_NATS_CLUSTER_HOST": "127.0.0.1",
        "ORISUN_NATS_CLUSTER_PORT": "0",
        "ORISUN_NATS_CLUSTER_PASSWORD": "hush@1",
        "ORISUN_NATS_CLUSTER_ROUTES": "nats://routes:hush%2@127.0.0.1:1,127.0.0.1:1",
    }
    settings = load(environ).settings
    server = EmbeddedNats(settings)
    await server.start()
    await server.stop()
    routes = json.loads((data_dir / "nats" / "nats-server.conf").read_text())["cluster"]["routes"]
    assert routes == ["nats-route://routes:hush%252@127.0.0.1:1", "nats-route://nats:hush%401@127.0.0.1:1"]
    server = EmbeddedNats(settings.model_copy(update={"nats_cluster_routes": ("nats://a:xx",)}))
    with pytest.raises(EmbeddedError, match="error parsing route url") as caught:
        await server.start()
    assert "hush" not in str(caught.value)


async def test_a_host_of_another_machine_is_advertised(data_dir: Path) -> None:
    environ = {
        "ORISUN_NATS_PORT": str(free_port()),
        "ORISUN_NATS_STORE_DIR": str(data_dir / "nats"),
        "ORISUN_NATS_CLUSTER_ENABLED": "true",
        "ORISUN_NATS_CLUSTER_HOST": "node1.example.invalid",
        "ORISUN_NATS_CLUSTER_PORT": str(port := free_port()),
    }
    server = EmbeddedNats(load(environ).settings)
    await server.start()
    try:
        text = (data_dir / "nats" / "nats-server.conf").read_text()
        assert f'"cluster_advertise": "node1.example.invalid:{port}"' in text
        assert f'"listen": "0.0.0.0:{port}"' in text
    finally:
        await server.stop()


async def test_three_servers_deliver_to_each_others_subscribers_over_the_loss_of_one(
    data_dir: Path, postgres: PostgresAddress
) -> None:
    """The seeds' three nodes, as they print them: one PostgreSQL, three servers, each with its nats-server."""
    nodes = routed(*(given for given in starts("000") if "ORISUN_NATS_SERVER_NAME" in given))
    places = [data_dir / f"node{number}" for number in range(len(nodes))]
    async with fresh_database(postgres) as database:
        await _three_nodes(
            [ServerProcess(None, here(node, place, database)) for node, place in zip(nodes, places, strict=True)],
            [place / "nats" / "nats-server.conf" for place in places],
            "orisun_test_2",
        )


def address(configuration: Path) -> str:
    """Of the nats-server with that configuration, with its credentials."""
    read = json.loads(configuration.read_text())
    login = read["authorization"]
    return f"nats://{login['user']}:{login['password']}@{read['listen']}"


async def copies(client: Client, boundary: str) -> tuple[int, int, int]:
    """How many the boundary's stream is to have, how many are in step, and the messages in it."""
    with contextlib.suppress(nats.errors.Error):
        jetstream = client.jetstream(timeout=2)
        info = await jetstream.stream_info(await stream_name(jetstream, boundary))
        peers = (info.cluster.replicas or []) if info.cluster else []
        in_step = sum(bool(peer.current and not peer.offline) for peer in peers)
        return info.config.num_replicas or 1, 1 + in_step, info.state.messages
    return 0, 0, 0


async def _three_nodes(servers: list[ServerProcess], configurations: list[Path], name: str) -> None:
    async def save(server: ServerProcess, event_id: str) -> None:
        event = wire.EventToSave(event_id=event_id, event_type="Kept", data="{}")
        request = wire.SaveEventsRequest(boundary=name, events=[event])
        await server.connection.events.SaveEvents(request, metadata=server.connection.metadata, timeout=10)

    async with contextlib.AsyncExitStack() as running:
        for server in servers:
            running.push_async_callback(server.close)
        await asyncio.gather(*(server.start() for server in servers))
        last = servers[2].connection
        request = wire.CatchUpSubscribeToEventStoreRequest(boundary=name, subscriber_name="watcher")
        stream = last.events.CatchUpSubscribeToEvents(request, metadata=last.metadata)
        await stream.initial_metadata()

        async def next_id() -> str:
            return str((await asyncio.wait_for(stream.read(), 60)).event_id)

        await save(servers[0], "one")
        assert await next_id() == "one"
        await eventually(
            lambda: all("the NATS cluster has a leader" in server.logs for server in servers), 60, message="a leader"
        )
        await save(servers[1], "two")
        assert await next_id() == "two"

        async def has(expected: tuple[int, int, int]) -> bool:
            return await copies(watching, name) == expected

        async with connected(address(configurations[2])) as watching:
            # it came over three copies in JetStream, not from PostgreSQL alone
            await eventually(lambda: has((3, 3, 2)), 60, 0.2, "three copies")
            await servers[0].kill()
            await save(servers[1], "three")
            assert await next_id() == "three"
            await eventually(lambda: has((3, 2, 3)), 60, 0.2, "two of three copies")
            await servers[0].start(60)
            await save(servers[0], "four")
            assert await next_id() == "four"
            await eventually(lambda: has((3, 3, 4)), 60, 0.2, "three copies again")
        stream.cancel()
