"""Servers of several versions on one schema: what a server serves, what it refuses, and the way back."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from orisun_server.settings import Settings
from orisun_server.storage.names import quote
from tests.faults.clients import Client, Code, Follower, store
from tests.faults.parts import connected
from tests.harness import ServerProcess, eventually

pytestmark = pytest.mark.fault

MakeSettings = Callable[..., Settings]
NEWER = 7


async def upgrade(settings: Settings, scope: str, oldest_server: str) -> None:
    """What a newer release leaves behind: a migration that this one does not know."""
    async with connected(settings) as connection:
        await connection.execute(
            f"INSERT INTO {ledger(settings)} (scope, schema_name, version, name, checksum, oldest_server, applied_by)"
            " SELECT scope, schema_name, n, 'newer', 'unknown', $2, 'a newer release'"
            f" FROM (SELECT scope, schema_name, max(version) AS last FROM {ledger(settings)} GROUP BY 1, 2) AS l"
            f" CROSS JOIN generate_series(last + 1, {NEWER}) AS n WHERE scope = $1",
            scope,
            oldest_server,
        )


async def go_back(settings: Settings) -> None:
    async with connected(settings) as connection:
        await connection.execute(f"DELETE FROM {ledger(settings)} WHERE name = 'newer'")


def ledger(settings: Settings) -> str:
    return f"{quote(settings.admin_schema)}.orisun_migration"


def scopes(settings: Settings) -> tuple[str, str]:
    return "admin", f"boundary:{settings.boundaries[0].name}"


async def test_a_newer_schema_that_admits_this_server(settings: Settings) -> None:
    async with store(settings, 1) as (client, servers), Follower(client) as follower:
        await client.save({"n": "1"})
        for scope in scopes(settings):
            await upgrade(settings, scope, "0.0.1")
        # a server that runs goes on, and one that starts begins
        await client.save({"n": "2"})
        async with store(settings, 1) as (late, _), store(settings, 1, VERIFY) as (strict, _):
            await late.save({"n": "3"})
            await strict.save({"n": "4"})
        await servers[0].stop()
        await servers[0].start()
        await client.save({"n": "5"})
        await follower.has(5)
        assert [event.tags["n"] for event in await client.log()] == ["1", "2", "3", "4", "5"]


VERIFY = {"ORISUN_SCHEMA_MIGRATIONS": "verify"}


@pytest.mark.parametrize("number", [0, 1], ids=["admin", "boundary"])
async def test_a_newer_schema_that_refuses_this_server(settings: Settings, number: int) -> None:
    """Alone it ends and says why; where an operator migrates, it waits unready until the schema fits."""
    async with store(settings, 1) as (client, servers):
        await client.save({"n": "1"})
        await servers[0].stop()
        await upgrade(settings, scopes(settings)[number], "9.9.9")

        alone = ServerProcess(settings)
        try:
            await alone.spawn()
            assert await alone.wait(30) == 1
            assert "needs server 9.9.9 or newer" in alone.logs
            assert "run a newer release" in alone.logs
            assert "Traceback" not in alone.logs
        finally:
            await alone.close()

        waiting = ServerProcess(settings, VERIFY)
        try:
            await waiting.spawn()
            await eventually(lambda: "needs server 9.9.9 or newer" in waiting.logs, 20)
            async with Client(client.boundary, waiting) as asking:
                endpoint = asking.endpoints[0]
                assert await endpoint.health() == "NOT_SERVING"
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await asking.save({"n": "2"}, patience=0)
                assert caught.value.code() == Code.UNAVAILABLE
                asking.history.attempts.clear()
                await go_back(settings)

                async def serves() -> bool:
                    return await endpoint.health() == "SERVING"

                await eventually(serves, message="SERVING after the way back")
                await asking.save({"n": "3"})
                assert [event.tags["n"] for event in await asking.log()] == ["1", "3"]
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
        assert "checksum" in servers[0].logs or "altered" in servers[0].logs
        assert "Traceback" not in servers[0].logs
