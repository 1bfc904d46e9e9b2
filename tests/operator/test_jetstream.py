"""Real NATS servers with the rendered configuration: they form a cluster, tell their health, lose members."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client

from orisun_operator.jetstream import Health, JetStream, JetStreamError
from orisun_operator.resources import nats as rendered
from tests.harness import eventually
from tests.operator.nats_servers import PASSWORDS, NatsServers, cluster_of


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


@pytest.mark.parametrize("shell", [("/bin/sh",), ("busybox", "sh")], ids=" ".join)
@pytest.mark.parametrize("stays", [False, True])
async def test_asked_to_stop_it_hands_over_and_ends_cleanly(tmp_path: Path, shell: Sequence[str], stays: bool) -> None:
    """With a client that stays and without one, in the shells of Debian and of the official image."""
    found = shutil.which(shell[0])
    if found is None:
        pytest.skip(f"no {shell[0]}: the start of NATS is NOT TESTED in it")
    servers = NatsServers(tmp_path, cluster_of(1), (found, *shell[1:]))
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


async def test_a_majority_lost_for_good_is_seen_and_another_beginning_heals(
    jetstream: JetStream, tmp_path: Path
) -> None:
    servers = NatsServers(tmp_path, cluster_of(3))
    try:
        for ordinal in range(3):
            servers.start(ordinal)
        await _healthy(jetstream, servers, 3)
        client = await nats.connect(f"nats://orisun:{PASSWORDS['password']}@{servers.address(0)}:4222")
        await client.jetstream().add_stream(name="S", subjects=["s.>"], num_replicas=3)
        await client.close()
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
