"""Servers of several versions on one schema: what a server serves, what it refuses, and the way back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import grpc
import pytest

from orisun_api import admin_pb2
from orisun_api import eventstore_pb2 as pb
from orisun_server.settings import Settings
from orisun_server.storage.names import quote
from tests.faults.clients import TRANSPORT, Client, Code, Follower, store
from tests.faults.parts import connected, names_of
from tests.faults.releases import NUMBERS, newer_release
from tests.harness import ServerProcess, eventually

pytestmark = pytest.mark.fault

MakeSettings = Callable[..., Settings]
VERIFY = {"ORISUN_SCHEMA_MIGRATIONS": "verify"}


def ledger(settings: Settings) -> str:
    return f"{quote(settings.admin_schema)}.orisun_migration"


def scopes(settings: Settings) -> dict[str, str]:
    """The scopes of the admin schema and of the first boundary, by kind."""
    return {"admin": "admin", "boundary": f"boundary:{settings.boundaries[0].name}"}


async def versions(settings: Settings) -> dict[str, int]:
    """What the schema is at, by kind."""
    async with connected(settings) as connection:
        rows = await connection.fetch(f"SELECT scope, max(version) FROM {ledger(settings)} GROUP BY 1")
    found = {row[0]: row[1] for row in rows}
    return {kind: found[scope] for kind, scope in scopes(settings).items()}


async def restore_the_schema(settings: Settings, kind: str) -> None:
    """As a backup from before the migration would have it."""
    table = f"{quote(settings.admin_schema)}.orisun_node" if kind == "admin" else names_of(settings).q_events
    async with connected(settings) as connection:
        await connection.execute(f"ALTER TABLE {table} DROP COLUMN newer")
        await connection.execute(f"DELETE FROM {ledger(settings)} WHERE name = 'newer'")


async def migrate(settings: Settings, release: Mapping[str, str]) -> str:
    """``orisun migrate apply`` of a release; what it prints."""
    server = ServerProcess(settings, release)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "orisun", "migrate", "apply"), env=server._environ,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    await server.close()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def version_of(client: Client) -> str:
    return str((await client.call("GetServerInfo", pb.GetServerInfoRequest())).version)


async def test_a_newer_release_beside_this_one(settings: Settings, data_dir: Path) -> None:
    """Its schema admits this one: both serve, each can be started while the other runs, and the way back is open."""
    release = newer_release(data_dir, "9.1.0", {"admin": "0.1.0", "boundary": "0.1.0"})
    async with store(settings, 1) as (ours, (old,)), Follower(ours) as follower:
        await ours.save({"n": "1"})
        async with ServerProcess(settings, {**TRANSPORT, **release}) as new, Client(ours.boundary, new) as theirs:
            assert (await version_of(ours), await version_of(theirs)) == ("0.1.0", "9.1.0")
            assert await versions(settings) == NUMBERS  # by the new server's start, under the old one
            await theirs.save({"n": "2"}, criteria=[{"n": "2"}])
            await ours.save({"n": "3"}, criteria=[{"n": "3"}])
            await old.stop()
            await old.start()
            await ours.save({"n": "4"})
            await theirs.save({"n": "5"})
            assert await ours.log() == await theirs.log()
            # a boundary that the old one makes is brought up by the new one
            added = f"added_{ours.boundary}"
            placement = admin_pb2.BoundaryPlacementInput(backend="postgres", namespace=settings.boundaries[0].schema)
            request = admin_pb2.CreateBoundaryRequest(name=added, description="", placement=placement)
            await old.connection.admin.CreateBoundary(request, metadata=ours.metadata)
            async with Client(added, new, old) as both:

                async def is_active_on_both() -> bool:
                    question = pb.GetEventsRequest(boundary=added, count=1)
                    for endpoint in both.endpoints:
                        try:
                            await endpoint.events.GetEvents(question, metadata=both.metadata)
                        except grpc.aio.AioRpcError as error:
                            if error.code() != Code.FAILED_PRECONDITION:
                                raise
                            return False
                    return True

                await eventually(is_active_on_both, message="the added boundary on both")
                await both.save({"n": "1"}, first=0)
                await both.save({"n": "2"}, first=1)
                assert [event.tags["n"] for event in await both.log()] == ["1", "2"]
        # the way back: the newer release is gone, its schema stays
        await ours.save({"n": "6"})
        async with store(settings, 1, VERIFY) as (strict, _):
            await strict.save({"n": "7"})
        await old.stop()
        await old.start()
        await follower.has(7)
        assert [event.tags["n"] for event in await ours.log()] == [str(n) for n in range(1, 8)]
        assert [event.position for event in follower.events] == [event.position for event in await ours.log()]
        assert await versions(settings) == NUMBERS


@pytest.mark.parametrize("kind", ["admin", "boundary"])
async def test_a_newer_release_that_does_not_admit_this_one(settings: Settings, data_dir: Path, kind: str) -> None:
    """Alone it ends and says why; where an operator migrates, it waits unready until the schema fits."""
    release = newer_release(data_dir, "9.1.0", {kind: "9.0.0"})
    async with store(settings, 1) as (ours, (old,)):
        await ours.save({"n": "1"})
        assert "newer" in await migrate(settings, release)
        await ours.save({"n": "2"})  # what runs is not disturbed
        await old.stop()
        await old.spawn()
        assert await old.wait(30) == 1
        said = old.logs.splitlines()[-1]
        assert f"is at version {NUMBERS[kind]} (newer), which needs server 9.0.0 or newer; this is server 0.1.0" in said
        assert "run a newer release" in said
        assert "Traceback" not in old.logs

        waiting = ServerProcess(settings, VERIFY)
        try:
            await waiting.spawn()
            await eventually(lambda: "needs server 9.0.0 or newer" in waiting.logs, 20)
            async with Client(ours.boundary, waiting) as asking:
                endpoint = asking.endpoints[0]
                assert await endpoint.health() == "NOT_SERVING"
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await asking.save({"n": "none"}, patience=0)
                assert caught.value.code() == Code.UNAVAILABLE
                asking.history.attempts.clear()

                async with (
                    ServerProcess(settings, {**TRANSPORT, **release}) as new,
                    Client(ours.boundary, new) as theirs,
                ):
                    await theirs.save({"n": "3"})
                    assert await endpoint.health() == "NOT_SERVING"

                await restore_the_schema(settings, kind)

                async def serves() -> bool:
                    return await endpoint.health() == "SERVING"

                await eventually(serves, message="SERVING after the way back")
                await asking.save({"n": "4"})
                assert [event.tags["n"] for event in await asking.log()] == ["1", "2", "3", "4"]
        finally:
            await waiting.close()


async def test_an_altered_migration_is_refused(settings: Settings) -> None:
    async with store(settings, 1) as (client, servers):
        await client.save({"n": "1"})
        await servers[0].stop()
        async with connected(settings) as connection:
            await connection.execute(f"UPDATE {ledger(settings)} SET checksum = 'other' WHERE scope = 'admin'")
        await servers[0].spawn()
        assert await servers[0].wait(30) == 1
        assert "was altered" in servers[0].logs
        assert "Traceback" not in servers[0].logs
