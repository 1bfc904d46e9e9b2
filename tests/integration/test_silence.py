"""PostgreSQL that answers nothing: what waits is given up, what is new is refused, and busy is not silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from orisun_server.errors import StorageSilent, StorageUnavailable
from orisun_server.settings import Settings
from orisun_server.storage.database import Database
from orisun_server.storage.kept import KeptConnections
from orisun_server.storage.probe import Probe
from orisun_server.tasks import end
from tests.harness import eventually
from tests.proxy import PostgresProxy

#: Seconds; real ones would make the tests long.
PATIENCE = 0.4


class Net(NamedTuple):
    """A network to PostgreSQL that can be frozen."""

    proxy: PostgresProxy
    database: Database
    probe: Probe


@pytest.fixture
async def net(pg_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Net]:
    """With two connections for each purpose."""
    for patience in ("_PATIENCE", "_PATIENCE_OF_LOGIN"):
        monkeypatch.setattr(f"orisun_server.storage.probe.{patience}", PATIENCE)
    few = {f"pg_{pool}_max_open_conns": 2 for pool in ("write", "read", "admin")}
    async with PostgresProxy(pg_settings.model_copy(update=few)) as proxy:
        database = await Database.connect(proxy.settings)
        probe = database.probe()
        yield Net(proxy, database, probe)
        probe.close()
        proxy.thaw()
        await database.close()


async def fetch(database: Database, seconds: float = 0.0) -> float:
    """A statement that PostgreSQL takes so long for, as reads are done; seconds until it ended."""
    began = time.monotonic()
    with database.guard():
        await database.read.fetchval("SELECT pg_sleep($1)", seconds)
    return time.monotonic() - began


async def test_what_waits_ends_and_what_is_new_is_refused_at_once(net: Net) -> None:
    proxy, database, probe = net
    await probe.ask()
    # two wait for an answer, two for a connection, one opens a connection of its own
    under_way = [asyncio.create_task(fetch(database, 0.1)) for _ in range(4)]
    await eventually(lambda: database.read.get_size() == 2 and not database.read.get_idle_size())
    proxy.freeze()
    under_way.append(asyncio.create_task(database.dedicated_connection()))  # type: ignore[arg-type]
    with pytest.raises(StorageSilent, match=rf"^PostgreSQL at {database.target} does not answer$"):
        await probe.ask()
    assert not (await asyncio.wait(under_way, timeout=1))[1]
    assert [type(ended.exception()) for ended in under_way] == [StorageSilent] * 5
    for _ in range(2):
        began = time.monotonic()
        for refused in (fetch(database), database.dedicated_connection(), database.listen_connection()):
            with pytest.raises(StorageSilent):
                await refused
        assert time.monotonic() - began < PATIENCE
        # it stays so
        with pytest.raises(StorageSilent):
            await probe.ask()
    proxy.thaw()
    await eventually(lambda: answers(probe))
    await asyncio.gather(*(fetch(database) for _ in range(4)))
    await (await database.dedicated_connection()).close()


async def answers(probe: Probe) -> bool:
    try:
        await probe.ask()
    except StorageUnavailable:
        return False
    return True


async def test_connections_that_flushes_keep_are_replaced(net: Net) -> None:
    """The first append after a silence does not meet a connection that was given up in it."""
    proxy, database, probe = net
    kept = KeptConnections(database.write)
    connection = await kept.take()
    kept.give_back(connection, sound=True)
    proxy.freeze()
    with pytest.raises(StorageSilent):
        await probe.ask()
    proxy.thaw()
    await eventually(lambda: answers(probe))
    for _ in range(2):
        again = await kept.take()
        assert again is not connection
        assert await again.fetchval("SELECT 1") == 1
        kept.give_back(again, sound=True)
    await kept.stop()
    assert not kept._until
    assert database.write.get_idle_size() == database.write.get_size() > 0


async def test_busy_is_not_silent(net: Net) -> None:
    """Every connection of every pool has work that takes longer than patience lasts, twice."""
    _, database, probe = net
    pools = (database.write, database.read, database.admin)
    working = [asyncio.create_task(pool.fetchval("SELECT pg_sleep($1)", 4 * PATIENCE)) for pool in pools for _ in "12"]
    await eventually(lambda: all(pool.get_size() == 2 and not pool.get_idle_size() for pool in pools))
    asked = 0
    while not all(work.done() for work in working):
        began = time.monotonic()
        await probe.ask()
        assert time.monotonic() - began < PATIENCE
        asked += 1
        await asyncio.sleep(PATIENCE / 4)
    assert asked > 4
    await asyncio.gather(*working)


async def test_a_pause_is_not_silence(net: Net) -> None:
    """Of the network, of PostgreSQL or of its machine."""
    proxy, database, probe = net
    await probe.ask()
    working = asyncio.create_task(fetch(database, 2 * PATIENCE))
    await eventually(lambda: not database.read.get_idle_size())
    proxy.freeze()
    asking = asyncio.create_task(probe.ask())
    await asyncio.sleep(1.5 * PATIENCE)
    assert not asking.done()
    proxy.thaw()
    await asking
    await working


async def test_a_process_that_gets_no_time_is_not_silence(net: Net) -> None:
    """The answers are there, and this process comes to look at them once in half of its patience."""

    async def hog() -> None:
        while True:
            time.sleep(PATIENCE / 2)  # noqa: ASYNC251 - that is the point
            await asyncio.sleep(0)

    hogging = asyncio.create_task(hog())
    try:
        # a new connection, which takes several turns
        await net.probe.ask()
    finally:
        await end([hogging])


async def test_connections_to_a_machine_that_is_gone_are_given_up_when_another_one_answers(net: Net) -> None:
    """As in a failover: the address leads to the new primary, and what is open to the old one, which is frozen."""
    proxy, database, probe = net
    await probe.ask()
    proxy.strand()
    stuck = asyncio.create_task(fetch(database))
    await probe.ask()
    assert not (await asyncio.wait([stuck], timeout=1))[1]
    assert isinstance(stuck.exception(), StorageUnavailable)
    assert await fetch(database) < PATIENCE


async def test_a_session_that_ended_is_not_silence(net: Net) -> None:
    """Of the probe itself: it asks anew at once. Where nobody listens, that is the reason."""
    proxy, database, probe = net
    await probe.ask()
    await proxy.cut()
    await probe.ask()
    await proxy.stop()
    for _ in range(3):
        with pytest.raises(StorageUnavailable, match="is not available: ") as refused, database.guard():
            await probe.ask()
        assert not isinstance(refused.value, StorageSilent)
        with pytest.raises(StorageUnavailable, match="is not available: "):
            await fetch(database)
    await proxy.start()
    await probe.ask()


async def test_a_slow_login_is_no_silence(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no connection has answered the probe before, it has to log in first."""
    proxy, database, probe = net
    monkeypatch.setattr("orisun_server.storage.probe._PATIENCE_OF_LOGIN", 10 * PATIENCE)
    proxy.login_takes = 3 * PATIENCE
    reading = asyncio.create_task(fetch(database, 4 * PATIENCE))
    await probe.ask()
    await reading
