"""PostgreSQL killed, held up by strangers, and brought back from the past, under servers that go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from orisun_server.core.position import NOTHING
from orisun_server.settings import Settings
from tests.faults.checker import Stored, check_delivered, check_prefix, check_run
from tests.faults.clients import Client, Code, Endpoint, Follower, store
from tests.faults.parts import PostgresServer, Stream, connected, names_of
from tests.harness import eventually

pytestmark = pytest.mark.fault

MakeSettings = Callable[..., Settings]


async def test_killed_under_load(make_settings: MakeSettings, own_postgres: PostgresServer) -> None:
    """Once until health has noticed, once and at once back."""
    settings = make_settings(**own_postgres.overrides)
    pages: list[list[Stored]] = []

    async def read(client: Client) -> None:
        """The beginning, and what a reader of the head sees."""
        while True:
            pages.append(await client.page(50, after=NOTHING))
            pages.append((await client.page(50, desc=True))[::-1])
            await asyncio.sleep(0.02)

    async with (
        store(settings) as (client, _),
        Stream(settings) as stream,
        Follower(client) as one,
        Follower(client, first=1) as other,
    ):
        reading = asyncio.create_task(read(client))
        async with client.load(6) as load:
            for pause in (True, False):
                await load.more(100)
                await own_postgres.kill()
                if pause:
                    for endpoint in client.endpoints:
                        await eventually(lambda e=endpoint: says(e, "NOT_SERVING"), message="NOT_SERVING")
                await own_postgres.start()
                began = time.monotonic()
                for endpoint in client.endpoints:
                    await eventually(lambda e=endpoint: says(e, "SERVING"), message="SERVING")
                print(f"serving {time.monotonic() - began:.2f} s after PostgreSQL")
                await load.more(100)
                since = len(pages)
                await eventually(lambda since=since: reading.done() or len(pages) >= since + 4)
        assert not reading.done(), reading.result()
        reading.cancel()
        assert set(client.errors) <= {Code.UNAVAILABLE}, client.errors
        assert client.errors
        log = await client.log()
        client.history.check(log)
        assert len(client.history.attempts) == len(client.history.acknowledged)
        for follower in (one, other):
            await follower.has(len(log))
            check_delivered(log, follower.events)
        await stream.check(log)
        for beginning, end in zip(pages[::2], pages[1::2], strict=False):
            check_prefix(log, beginning)
            check_run(log, end)


async def test_sessions_ended_under_load(settings: Settings) -> None:
    """Any connection may be lost at any moment, also between a commit and its answer."""
    async with (
        store(settings) as (client, _),
        Stream(settings) as stream,
        Follower(client) as one,
        Follower(client, first=1) as other,
        connected(settings) as connection,
    ):
        ended = 0
        async with client.load(8, pause=0) as load:
            for _ in range(30):
                await load.more(20)
                ended += await connection.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE application_name = 'orisun' AND datname = current_database() AND random() < 0.4"
                )
        assert ended > 30
        assert set(client.errors) <= {Code.UNAVAILABLE}, client.errors
        log = await client.log()
        client.history.check(log)
        assert len(client.history.attempts) == len(client.history.acknowledged)
        for follower in (one, other):
            await follower.has(len(log))
            check_delivered(log, follower.events)
        await stream.check(log)


async def says(endpoint: Endpoint, status: str) -> bool:
    return await endpoint.health() == status


@asynccontextmanager
async def open_transactions(settings: Settings) -> AsyncIterator[None]:
    """What others leave open: with a transaction id, with a snapshot, in this database and in another one."""
    names = names_of(settings)
    async with (
        connected(settings) as writing,
        connected(settings) as reading,
        connected(settings, "postgres") as elsewhere,
        writing.transaction(),
        reading.transaction(isolation="repeatable_read", readonly=True),
        elsewhere.transaction(),
    ):
        await writing.fetchval("SELECT pg_current_xact_id()")
        await writing.execute("CREATE TEMPORARY TABLE mine AS SELECT 1 AS one")
        await reading.fetch(f"SELECT * FROM {names.q_events}")
        await elsewhere.fetchval("SELECT pg_current_xact_id()")
        yield


async def test_open_transactions_elsewhere_stall_nothing(settings: Settings) -> None:
    async with store(settings) as (client, _), Stream(settings) as stream:
        await client.save({"n": "before"})
        async with open_transactions(settings), Follower(client) as one, Follower(client, first=1) as other:
            await one.has(1)
            await other.has(1)
            await stream.reaches((await client.log())[-1].position)
            took = []
            for number in range(20):
                began = time.monotonic()
                position = await client.save({"n": str(number)}, first=number)
                assert (await client.page(1, desc=True, first=number + 1))[0].position == position
                await stream.reaches(position)
                await one.has(number + 2)
                await other.has(number + 2)
                took.append(time.monotonic() - began)
            took.sort()
            print(f"append, read, published, delivered twice beside open transactions: at most {took[-1]:.3f} s")
            assert took[-3] < 1
            # a server that starts now is not stalled either
            async with store(settings, 1) as (late, _), Follower(late) as third:
                await third.has(21)
            log = await client.log()
            client.history.check(log)
            check_delivered(log, one.events)
            check_delivered(log, other.events)
            check_delivered(log, third.events)


class Past:
    """A database of a test's own that can be brought back to an earlier point, as from a backup."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._name = settings, settings.pg_name

    async def _execute(self, *statements: str) -> None:
        async with connected(self._settings, "postgres") as connection:
            for statement in statements:
                await connection.execute(statement)

    async def create(self) -> None:
        await self._execute(f"CREATE DATABASE {self._name}")

    async def back_up(self) -> None:
        """Nobody may be connected."""
        await self._execute(f"CREATE DATABASE {self._name}_past TEMPLATE {self._name}")

    async def restore(self) -> None:
        """Servers may run: their connections are ended, as by a PostgreSQL that is replaced."""
        await self._execute(
            f"DROP DATABASE {self._name} WITH (FORCE)", f"ALTER DATABASE {self._name}_past RENAME TO {self._name}"
        )

    async def drop(self) -> None:
        await self._execute(*(f"DROP DATABASE IF EXISTS {self._name}{x} WITH (FORCE)" for x in ("", "_past")))


@pytest.fixture
async def past(make_settings: MakeSettings) -> AsyncIterator[tuple[Settings, Past]]:
    name = make_settings("history").boundaries[0].name
    settings = make_settings(pg_name=name)
    past = Past(settings)
    await past.create()
    try:
        yield settings, past
    finally:
        await past.drop()


@pytest.mark.parametrize(("running", "more"), [(False, 30), (True, 0)], ids=["stopped, longer", "running, same length"])
async def test_restored_to_an_earlier_point(past: tuple[Settings, Past], running: bool, more: int) -> None:
    """The stream outlives the restore. Servers are stopped for it, or run through it."""
    settings, database = past
    async with store(settings) as (client, servers), Stream(settings) as stream:
        for number in range(5):
            await client.save({"common": str(number)})
        await asyncio.gather(*(server.stop() for server in servers))
        await database.back_up()
        await asyncio.gather(*(server.start() for server in servers))
        async with client.load(2) as load:
            await load.more(20)
        old = await client.log()
        await stream.reaches(old[-1].position)
        async with Client(client.boundary, *servers) as before, Follower(before) as through:
            await through.has(len(old))
            if not running:
                await asyncio.gather(*(server.stop() for server in servers))
            await database.restore()
            if not running:
                await asyncio.gather(*(server.start() for server in servers))
            client.history.attempts = client.history.attempts[:5]
            await client.save({"new": "first"})
            # it was beyond what there is now, and is told so instead of missing what comes
            await asyncio.wait([through.task], timeout=20)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                through.check()
            assert caught.value.code() == Code.OUT_OF_RANGE
            assert through.events == old
            common = old[4].position
            async with (
                Follower(client, after=common) as one,
                Follower(client, first=1, after=common) as other,
                Follower(client, criteria=[{"new": "live"}]) as some,
            ):
                await one.has(1)
                await other.has(1)
                for number in range(len(old) - 6 + more):
                    await client.save({"new": "live" if number % 2 else "x"}, first=number)
                log = await client.log()
                client.history.check(log)
                assert log[:5] == old[:5]
                assert not {event.event_id for event in log[5:]} & {event.event_id for event in old[5:]}
                await one.has(len(log) - 5)
                await other.has(len(log) - 5)
                check_delivered(log, one.events, after=common)
                check_delivered(log, other.events, after=common)
                wanted = [event for event in log if event.tags.get("new") == "live"]
                await some.has(len(wanted))
                check_delivered(log, some.events, [{"new": "live"}])
                await stream.check(log, whole=False)
                # it is live again, not only polled
                delays = []
                for number in range(10):
                    began = time.monotonic()
                    await client.save({"new": "late"})
                    await one.has(len(log) - 5 + number + 1)
                    delays.append(time.monotonic() - began)
                print(f"delivered after the restore in {sorted(delays)[5]:.3f} s")
                assert sorted(delays)[5] < 0.5
