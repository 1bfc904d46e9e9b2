"""The end of a server under load: asked to, asked twice, and without being asked."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import psutil
import pytest

from orisun_server.settings import Settings
from tests.faults.checker import check_delivered
from tests.faults.clients import TRANSPORT, Client, Code, Follower, save_request, store
from tests.faults.parts import PostgresServer, connected, family, gone, names_of
from tests.harness import ServerProcess, eventually

pytestmark = pytest.mark.fault

MakeSettings = Callable[..., Settings]
BOUNDARY = "orisun_test_1"


def laptop_server(data_dir: Path, grace: str = "10s") -> ServerProcess:
    """A server with everything embedded."""
    return ServerProcess(
        None,
        TRANSPORT
        | {
            "ORISUN_DATA_DIR": str(data_dir),
            "ORISUN_NATS_STORE_DIR": str(data_dir / "nats"),
            "ORISUN_NATS_PORT": "0",
            "ORISUN_SHUTDOWN_GRACE": grace,
            "ORISUN_NODE_TTL": "2s",
        },
    )


@contextlib.asynccontextmanager
async def laptop(data_dir: Path) -> AsyncIterator[tuple[Client, ServerProcess]]:
    """Serving, and its client."""
    server = laptop_server(data_dir)
    async with server, Client(BOUNDARY, server) as client:
        yield client, server


async def all_is_well(client: Client, *followers: Follower) -> None:
    log = await client.log()
    client.history.check(log)
    assert len(client.history.attempts) == len(client.history.acknowledged)
    for follower in followers:
        await follower.has(len(log))
        check_delivered(log, follower.events)


async def test_sigterm_under_load_beside_another_server(make_settings: MakeSettings, transport: dict[str, str]) -> None:
    settings = make_settings(shutdown_grace=10.0)
    async with (
        store(settings, 2, transport) as (client, servers),
        Follower(client) as one,
        Follower(client) as two,
        Follower(client, criteria=[{"n": "1"}]) as some,
    ):
        async with client.load(8, pause=0), client.load(4, pause=0, events=200) as load:
            await load.more(1000)
            began = time.monotonic()
            assert await servers[0].stop() == 0
            print(f"SIGTERM under load: ended after {time.monotonic() - began:.2f} s")
            assert time.monotonic() - began < 10
            await load.more(1000)
        for follower in (one, two, some):
            code, details = follower.endings[0]
            assert code == Code.UNAVAILABLE
            assert "shutting down" in details
        # the outcome of each call was told, or the server never took it
        assert Code.DEADLINE_EXCEEDED not in client.errors
        await all_is_well(client, one, two)
        assert json.loads(servers[0].logs.splitlines()[-1])["event"] == "stopped"
        assert not any(json.loads(line)["level"] in ("error", "critical") for line in log_lines(servers[0]))


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "again and again"])
async def test_calls_that_come_while_it_stops_are_unavailable(
    settings: Settings, transport: dict[str, str], persistent: bool
) -> None:
    """That is the status which every client repeats; CANCELLED, which grpcio has for calls that it drops, is none."""
    async with store(settings, 1, transport) as (client, servers):
        saved, codes = set[str](), Counter[Code]()

        async def save(caller: int) -> None:
            for number in itertools.count():
                if servers[0].returncode is not None:
                    return
                event_id = f"{caller}-{number}"
                request = save_request(client.boundary, [event_id], [{"caller": str(caller)}])
                try:
                    await client.endpoints[0].events.SaveEvents(request, metadata=client.metadata, timeout=20)
                    saved.add(event_id)
                except grpc.aio.AioRpcError as error:
                    codes[error.code()] += 1
                    if not persistent:
                        return
                    # as soon as a client may: the connection is not the one that failed
                    await asyncio.sleep(0.001)

        callers = [asyncio.create_task(save(number)) for number in range(50)]
        await eventually(lambda: len(saved) > 500)
        began = time.monotonic()
        assert await servers[0].stop() == 0
        print(f"SIGTERM beside 50 callers: ended after {time.monotonic() - began:.2f} s; {codes}")
        await asyncio.gather(*callers)
        assert codes.keys() == {Code.UNAVAILABLE}, codes
        assert codes.total() >= len(callers)
        async with connected(settings) as connection:
            rows = await connection.fetch(f"SELECT event_id FROM {names_of(settings).q_events}")
        assert saved <= {row["event_id"] for row in rows}


def log_lines(server: ServerProcess) -> list[str]:
    return [line for line in server.logs.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("ending", ["sigterm", "sigkill", "twice"])
async def test_embedded_parts_end_with_their_server_under_load(data_dir: Path, ending: str) -> None:
    """Nothing is left running, and the next start finds everything again."""
    async with laptop(data_dir) as (client, server), Follower(client) as follower:
        async with client.load(6) as load:
            await load.more(100)
            processes = family(server.pid)
            assert {"postgres", "nats-server"} <= {process.name() for process in processes}
            began = time.monotonic()
            if ending == "sigterm":
                assert await server.stop() == 0
                assert not [process for process in processes if process.is_running()]
                assert time.monotonic() - began < 10
            elif ending == "sigkill":
                await server.kill()
            else:
                # PostgreSQL does not answer, so the calls that were taken hold the end up
                postgres = [process for process in processes if process.name() == "postgres"]
                for process in postgres:
                    process.suspend()
                await server.signal(signal.SIGTERM)
                await eventually(lambda: "second signal" in server.logs)
                began = time.monotonic()
                await server.signal(signal.SIGTERM)
                assert await server.wait(5) != 0
                assert time.monotonic() - began < 2
                for process in postgres:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.resume()
            await gone(processes)
            print(f"{ending}: all ended after {time.monotonic() - began:.2f} s")
            await server.start()
            await load.more(100)
        await all_is_well(client, follower)


async def test_stopped_while_it_starts(data_dir: Path) -> None:
    """At any moment between the first instruction and serving."""
    for number in range(5):
        server = laptop_server(data_dir)
        try:
            await server.spawn()
            # a moment later each time; the first one initializes the directory
            await asyncio.sleep(0.3 + number * 0.25)
            processes = family(server.pid)
            await server.signal(signal.SIGTERM)
            code = await server.wait(60)
            assert code in (0, -signal.SIGTERM), server.logs
            assert "Traceback" not in server.logs
            await gone(processes)
        finally:
            await server.close()
    async with laptop(data_dir) as (client, _):
        await client.save({"n": "1"})
        await all_is_well(client)


async def test_the_grace_is_kept_while_it_starts(data_dir: Path) -> None:
    """A nats-server that hangs is waited for no longer than that."""
    server = laptop_server(data_dir, "2s")
    processes: list[psutil.Process] = []
    try:
        await server.spawn()

        def nats_server() -> psutil.Process | None:
            for process in family(server.pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.name() == "nats-server":
                        return process
            return None

        hanging = await eventually(nats_server, interval=0.005)
        assert hanging is not None
        hanging.suspend()
        processes = family(server.pid)
        began = time.monotonic()
        await server.signal(signal.SIGTERM)
        assert await server.wait(20) == 1, server.logs
        assert time.monotonic() - began < 5
        assert "ORISUN_SHUTDOWN_GRACE is over" in server.logs
        assert "gRPC server started" not in server.logs
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        await gone(processes)
        await server.close()


async def test_the_grace_is_kept_when_postgresql_hangs(
    make_settings: MakeSettings, own_postgres: PostgresServer
) -> None:
    settings = make_settings(shutdown_grace=3.0, **own_postgres.overrides)
    async with store(settings, 1) as (client, servers), Follower(client):
        async with client.load(4, timeout=30) as load:
            await load.more(50)
            own_postgres.signal(signal.SIGSTOP)
            try:
                # calls are under way now, and do not end
                await asyncio.sleep(0.2)
                began = time.monotonic()
                assert await servers[0].stop(60) == 1
                took = time.monotonic() - began
                print(f"SIGTERM while PostgreSQL hangs, with a grace of 3 s: ended after {took:.2f} s")
                assert took < 5
            finally:
                own_postgres.signal(signal.SIGCONT)
            await servers[0].start()
            await load.more(50)
        await all_is_well(client)
