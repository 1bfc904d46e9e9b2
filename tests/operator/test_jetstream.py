"""Real NATS servers with the rendered configuration: they form a cluster, tell their health, lose members."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import nats
import pytest
from aiohttp import web
from nats.aio.client import Client

from orisun_operator.jetstream import Health, JetStream, JetStreamError
from orisun_operator.resources import nats as rendered
from tests.harness import eventually
from tests.operator.nats_servers import PASSWORDS, NatsServers, cluster_of


@pytest.fixture(params=[("/bin/sh",), ("busybox", "sh")], ids=" ".join)
def shell(request: pytest.FixtureRequest) -> Sequence[str]:
    """Those of Debian and of the official image."""
    name, *arguments = request.param
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}: the start of NATS is NOT TESTED in it")
    return found, *arguments


@pytest.fixture
async def jetstream() -> AsyncIterator[JetStream]:
    made = JetStream()
    yield made
    await made.close()


async def _healthy(jetstream: JetStream, servers: NatsServers, members: int) -> Health:
    async def there() -> Health | None:
        health = await jetstream.health(servers.addresses(), clustered=True)
        names = {peer.name for peer in health.peers}
        return health if not health.problem and len(names) == members and names == set(health.names.values()) else None

    found = await eventually(there, 60, 0.1)
    assert found is not None
    return found


async def _with_a_stream(jetstream: JetStream, servers: NatsServers) -> Client:
    """Starts three with a stream S that each has a copy of; a client of the first."""
    for ordinal in range(3):
        servers.start(ordinal)
    await _healthy(jetstream, servers, 3)
    client = await nats.connect(f"nats://orisun:{PASSWORDS['password']}@{servers.address(0)}:4222")
    await client.jetstream().add_stream(name="S", subjects=["s.>"], num_replicas=3)
    return client


async def _log_of_a_start(servers: NatsServers) -> str:
    """What one says until it is ready, and ends."""
    servers.start(0)
    try:
        assert await _ready(servers), servers.log(0)
    finally:
        servers.close()
    return servers.log(0)


async def _ready(servers: NatsServers) -> bool:
    try:
        return bool(await eventually(lambda: "Server is ready" in servers.log(0), 30, 0.1))
    except AssertionError:
        return False


async def test_a_single_server_is_healthy_without_a_leader(jetstream: JetStream, tmp_path: Path) -> None:
    servers = NatsServers(tmp_path, cluster_of(1))
    servers.start(0)
    try:
        assert await _ready(servers), servers.log(0)

        async def healthy() -> bool:
            health = await jetstream.health(servers.addresses(), clustered=False)
            return not health.problem

        await eventually(healthy, 30, 0.1)
    finally:
        servers.close()
    health = await jetstream.health({"store-0": servers.address(0)}, clustered=False)
    assert "store-0: its NATS server does not answer" in health.problem


@pytest.mark.parametrize("stays", [False, True])
async def test_asked_to_stop_it_hands_over_and_ends_cleanly(tmp_path: Path, shell: Sequence[str], stays: bool) -> None:
    """With a client that stays and without one, in the shells of Debian and of the official image."""
    servers = NatsServers(tmp_path, cluster_of(1), shell)
    servers.start(0)
    clients: list[Client] = []
    try:
        assert await _ready(servers), servers.log(0)
        if stays:
            clients.append(await nats.connect(f"nats://orisun:{PASSWORDS['password']}@{servers.address(0)}:4222"))
        assert servers.stop(0) == 0
    finally:
        servers.close()
        for client in clients:
            await client.close()
    log = servers.log(0)
    assert ("Entering lame duck mode" in log, "Closing existing clients" in log) == (True, stays)


async def test_one_at_a_time_writes_a_volume(tmp_path: Path, shell: Sequence[str]) -> None:
    """A pod that is deleted by force still runs while its successor starts."""
    servers = NatsServers(tmp_path, cluster_of(1), shell)
    servers.start(0)
    try:
        assert await _ready(servers), servers.log(0)
        with servers.another(0):
            assert await eventually(lambda: "waiting: the NATS server of an earlier pod" in servers.log(0), 30, 0.05)
            assert servers.log(0).count("Starting nats-server") == 1
            servers.stop(0, signal.SIGKILL)
            assert await eventually(lambda: servers.log(0).count("Server is ready") == 2, 30, 0.05)
        assert servers.log(0).count("waiting") == 1
    finally:
        servers.close()


@pytest.mark.parametrize("status", [1, 71], ids=["flock of busybox", "flock of util-linux"])
async def test_a_volume_that_cannot_be_locked_is_used_all_the_same(
    tmp_path: Path, shell: Sequence[str], status: int
) -> None:
    """As some network file systems cannot; to busybox that is the same status as a lock that somebody has."""
    servers = NatsServers(tmp_path, cluster_of(1), shell)
    program = tmp_path / "0" / "bin" / "flock"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho flock: No locks available >&2\nexit {status}\n")
    program.chmod(0o755)
    assert "cannot be locked (flock: No locks available)" in await _log_of_a_start(servers)


async def test_a_volume_on_which_the_lock_cannot_be_made_is_used_all_the_same(tmp_path: Path) -> None:
    servers = NatsServers(tmp_path, cluster_of(1))
    (tmp_path / "0" / "data" / "lock").mkdir(parents=True)
    assert "lock: Is a directory" in await _log_of_a_start(servers)


async def test_its_hook_holds_it_until_the_server_has_drained(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text("serving")
    script = rendered.container(cluster_of(1))["lifecycle"]["preStop"]["exec"]["command"][-1]
    hook = await asyncio.create_subprocess_exec("/bin/sh", "-c", script.replace(rendered.DRAINED_FILE, str(state)))
    try:
        # several of its looks
        done, _ = await asyncio.wait([asyncio.create_task(hook.wait())], timeout=0.7)
        assert not done
        state.write_text("drained")
        assert await asyncio.wait_for(hook.wait(), 30) == 0
    finally:
        if hook.returncode is None:
            hook.kill()
            await hook.wait()


async def test_members_come_go_and_are_removed(jetstream: JetStream, tmp_path: Path) -> None:
    servers = NatsServers(tmp_path, cluster_of(3))
    try:
        for ordinal in range(3):
            servers.start(ordinal)
        health = await _healthy(jetstream, servers, 3)
        address = servers.address(0)
        user = f"nats://orisun:{PASSWORDS['password']}@{address}:4222"
        client = await nats.connect(user)
        stream = await client.jetstream().add_stream(name="S", subjects=["s.>"], num_replicas=3)
        assert stream.config.num_replicas == 3
        await client.close()

        # back on its own volume it is who it was
        servers.stop(1)
        degraded = await jetstream.health(servers.addresses() | {"store-1": servers.address(1)}, clustered=True)
        assert "store-1" in degraded.problem
        servers.start(1)
        again = await _healthy(jetstream, servers, 3)
        assert again.names == health.names

        # with its volume lost it is somebody new, and the old member has to go
        servers.stop(1)
        servers.lose_volume(1)
        servers.start(1)

        async def four() -> Health | None:
            seen = await jetstream.health(servers.addresses(), clustered=True)
            return seen if len(seen.peers) == 4 and "store-1" in seen.names else None

        seen = await eventually(four, 60, 0.1)
        assert seen is not None
        assert seen.names["store-1"] != health.names["store-1"]
        addresses = list(servers.addresses().values())
        with pytest.raises(JetStreamError):
            await jetstream.remove(addresses, "system", "wrong", health.names["store-1"])

        async def removed() -> bool:
            try:
                password = PASSWORDS[rendered.SYSTEM_PASSWORD]
                await jetstream.remove(addresses, "system", password, health.names["store-1"])
            except JetStreamError:  # the new member is still being taken in
                return False
            return True

        await eventually(removed, 30, 0.1)
        after = await _healthy(jetstream, servers, 3)
        assert health.names["store-1"] not in {peer.name for peer in after.peers}
    finally:
        servers.close()


async def test_a_stream_given_up_after_a_failed_write_is_seen_and_a_restart_takes_it_up(
    jetstream: JetStream, tmp_path: Path
) -> None:
    """With room enough again the server goes on refusing: so does one that has found its copy inconsistent."""
    servers = NatsServers(tmp_path, cluster_of(3))
    try:
        client = await _with_a_stream(jetstream, servers)
        stream = client.jetstream()
        for _ in range(100):
            await stream.publish("s.a", bytes(1000))
        cluster = (await stream.stream_info("S")).cluster
        assert cluster is not None
        # who leads has calls without answer first
        ill = next(n for n in range(3) if not (cluster.leader or "").startswith(f"store-{n}-"))
        servers.limit_files(ill, 50_000)

        async def stopped() -> Health | None:
            await stream.publish("s.a", bytes(1000))
            health = await jetstream.health(servers.addresses(), clustered=True)
            return health if health.stopped else None

        health = await eventually(stopped, 30, 0.01)
        assert health is not None
        assert health.stopped == health.ailing == (f"store-{ill}",)
        assert health.problem.startswith(f"store-{ill}: JetStream stream 'ORISUN > S' ")
        assert health.problem.endswith("; that lasts until the pod is deleted and made anew")
        servers.limit_files(ill, None)
        for _ in range(100):
            await stream.publish("s.a", bytes(1000))
        assert (await jetstream.health(servers.addresses(), clustered=True)).stopped == (f"store-{ill}",)
        await client.close()
        servers.stop(ill)
        servers.start(ill)
        await _healthy(jetstream, servers, 3)
        # with one of the others gone it has to have all of it
        servers.stop((ill + 1) % 3, signal.SIGKILL)
        client = await nats.connect(f"nats://orisun:{PASSWORDS['password']}@{servers.address(ill)}:4222")

        async def all_of_it() -> bool:
            try:
                info = await client.jetstream().stream_info("S")
            except nats.errors.Error:
                return False
            return info.state.messages == info.state.last_seq >= 200

        assert await eventually(all_of_it, 30, 0.1)
        await client.close()
    finally:
        servers.close()


async def test_a_server_without_room_is_not_helped_by_a_restart(jetstream: JetStream) -> None:
    """What nats-server answers then, as its source has it (monitor.go): a full disk is hard to come by in a test."""
    errors = [
        {"type": "STREAM", "error": "JetStream stream 'ORISUN > A' is not current: stream catching up"},
        {"type": "STREAM", "error": "JetStream stream 'ORISUN > B' is not current: stream write error: no space left"},
        *[{"type": "STREAM", "error": f"JetStream stream 'ORISUN > {n}' is not current"} for n in range(3)],
    ]

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/healthz":
            return web.json_response({"status": "error", "errors": errors}, status=503)
        return web.json_response({"server_name": "store-0-abc"})

    app = web.Application()
    app.router.add_get("/{any}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.9.8.7", 8222).start()
        health = await jetstream.health({"store-0": "127.9.8.7"}, clustered=False)
    finally:
        await runner.cleanup()
    assert (health.ailing, health.stopped) == (("store-0",), ())
    assert health.problem.startswith("store-0: JetStream stream 'ORISUN > B' ")
    assert health.problem.endswith(", 2 more")


async def test_a_majority_lost_for_good_is_seen_and_another_beginning_heals(
    jetstream: JetStream, tmp_path: Path
) -> None:
    servers = NatsServers(tmp_path, cluster_of(3))
    try:
        await (await _with_a_stream(jetstream, servers)).close()
        for ordinal in (1, 2):
            servers.stop(ordinal, signal.SIGKILL)
        for ordinal in (1, 2):
            servers.lose_volume(ordinal)
            servers.start(ordinal)

        async def leaderless() -> bool:
            health = await jetstream.health(servers.addresses(), clustered=True)
            return len(health.names) == 3 and not health.leader and bool(health.problem)

        await eventually(leaderless, 60, 0.1)

        # one at a time, as a rollout does it: old and new servers must not find together
        servers.begin_anew()
        for ordinal in (2, 1, 0):
            servers.stop(ordinal, signal.SIGKILL)
            servers.start(ordinal)
            if ordinal:
                await eventually(lambda ordinal=ordinal: "Server is ready" in servers.log(ordinal), 30, 0.1)
        await _healthy(jetstream, servers, 3)
        client = await nats.connect(f"nats://orisun:{PASSWORDS['password']}@{servers.address(0)}:4222")
        stream = await client.jetstream().add_stream(name="S", subjects=["s.>"], num_replicas=3)
        assert stream.config.num_replicas == 3
        await client.close()
    finally:
        servers.close()
