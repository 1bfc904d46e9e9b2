"""Leases: exclusive, fenced by epochs, free after their node's lifetime; checked with frozen networks and processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from orisun_server.errors import Unavailable
from orisun_server.settings import Settings
from orisun_server.storage.database import Database
from orisun_server.storage.lease_sql import LeaseSql
from orisun_server.storage.leases import Lease, Leases
from orisun_server.storage.migrate import Migrator
from tests.harness import environment, eventually, is_quick
from tests.proxy import PostgresProxy

Join = Callable[..., Awaitable[Leases]]


@pytest.fixture
async def schema(database: Database, make_settings: Callable[..., Settings]) -> str:
    """A fresh admin schema."""
    migrator = Migrator(database, make_settings().admin_schema)
    await migrator.apply([migrator.admin])
    return migrator.admin.schema


@pytest.fixture
async def join(database: Database, schema: str) -> AsyncIterator[Join]:
    """Start a node: ``await join("a", ttl=1)``."""
    joined: list[Leases] = []

    async def start(name: str, ttl: float = 15.0, through: Database | None = None) -> Leases:
        leases = Leases(through or database, schema, name, ttl)
        await leases.start()
        joined.append(leases)
        return leases

    yield start
    for leases in joined:
        await leases.stop()


@pytest.fixture
async def frozen_network(pg_settings: Settings) -> AsyncIterator[tuple[PostgresProxy, Database]]:
    """A network of its own, and connections through it."""
    async with PostgresProxy(pg_settings) as proxy:
        database = await Database.connect(proxy.settings)
        yield proxy, database
        proxy.thaw()
        await database.close()


async def take(leases: Leases, kind: str, boundary: str, name: str = "", timeout: float = 30.0) -> Lease:
    return await eventually(lambda: leases.acquire(kind, boundary, name), timeout)  # type: ignore[return-value]


async def test_a_lease_has_one_holder_and_a_release_frees_it_at_once(join: Join) -> None:
    a, b = await join("a"), await join("b")
    assert await a.live_nodes() == 2
    lease = await a.acquire("publisher", "orders")
    assert lease is not None
    assert lease.valid
    assert lease.epoch == 1
    assert a.held("publisher") == [lease]
    assert await b.acquire("publisher", "orders") is None
    assert await a.acquire("publisher", "orders") is None
    for free in (("publisher", "payments"), ("index-build", "orders")):
        assert await b.acquire(*free) is not None
    await lease.release()
    assert not lease.valid
    assert not lease.lost.is_set()
    again = await b.acquire("publisher", "orders")
    assert again is not None
    assert again.epoch == 2
    await lease.release()
    assert again.valid
    assert await a.acquire("publisher", "orders") is None


@pytest.mark.parametrize("name", ["", "mailer", "ü" * 255, "a'b\"c $1 {x}\\ \n"])
async def test_any_text_is_a_name_and_names_are_apart(join: Join, name: str) -> None:
    a, b = await join("a"), await join("b")
    assert await a.acquire("subscriber", "orders", name) is not None
    assert await b.acquire("subscriber", "orders", name) is None
    assert await b.acquire("subscriber", "orders", name + "x") is not None
    assert await b.acquire("subscriber", "payments", name) is not None


async def test_release_and_acquire_again_at_the_same_time(join: Join) -> None:
    leases = await join("a")
    lease = await take(leases, "subscriber", "orders", "mailer")
    for epoch in range(2, 30):
        _, again = await asyncio.gather(lease.release(), leases.acquire("subscriber", "orders", "mailer"))
        lease = again or await take(leases, "subscriber", "orders", "mailer")
        assert lease.valid
        assert lease.epoch == epoch


async def test_a_clean_stop_frees_everything_at_once(join: Join) -> None:
    a, b = await join("a", ttl=60), await join("b", ttl=60)
    mine = await a.acquire_many("publisher", [f"b{number}" for number in range(20)], 20)
    assert len(mine) == 20
    assert await b.free("publisher", [f"b{number}" for number in range(22)]) == ["b20", "b21"]
    await a.stop()
    assert all(lease.lost.is_set() and not lease.valid for lease in mine)
    assert await b.live_nodes() == 1
    assert len(await b.acquire_many("publisher", [f"b{number}" for number in range(20)], 20)) == 20


async def test_two_nodes_share_200_boundaries_by_one_statement_each(join: Join) -> None:
    a, b = await join("a"), await join("b")
    names = [f"b{number:03}" for number in range(200)]
    shares = await asyncio.gather(a.acquire_many("publisher", names, 100), b.acquire_many("publisher", names, 100))
    for share, leases in zip(shares, (a, b), strict=True):
        share.extend(await leases.acquire_many("publisher", names, 100 - len(share)))
    held = [lease.boundary for share in shares for lease in share]
    assert len(held) == len(set(held)) == 200
    assert [len(share) for share in shares] == [100, 100]
    assert await a.free("publisher", names) == []

    async def asks() -> float:
        began = time.monotonic()
        assert await a.acquire_many("publisher", names, 200) == []
        return time.monotonic() - began

    await is_quick(asks, 1)


async def test_leases_of_a_node_that_went_silent_are_free_after_its_lifetime(
    join: Join, frozen_network: tuple[PostgresProxy, Database]
) -> None:
    proxy, through = frozen_network
    a, b = await join("a", ttl=1.0, through=through), await join("b", ttl=1.0)
    lease = await take(a, "publisher", "orders")
    before = a.node_id
    proxy.freeze()
    began = time.monotonic()
    successor = await take(b, "publisher", "orders")
    assert 0.3 < time.monotonic() - began < 10
    assert not lease.valid
    assert successor.epoch > lease.epoch
    await asyncio.wait_for(lease.lost.wait(), 30)
    with pytest.raises(Unavailable):
        await a.acquire("publisher", "payments")
    proxy.thaw()
    await eventually(lambda: a.lives_as(a.node_id))
    assert a.node_id != before
    assert not lease.valid
    assert await a.acquire("publisher", "orders") is None
    assert (await take(a, "publisher", "payments")).valid
    await lease.release()
    assert successor.valid


async def test_a_short_silence_loses_nothing(
    join: Join, frozen_network: tuple[PostgresProxy, Database], database: Database, schema: str
) -> None:
    proxy, through = frozen_network
    a = await join("a", ttl=9.0, through=through)
    lease = await take(a, "publisher", "orders")

    async def expires() -> datetime:
        when: datetime = await database.admin.fetchval(f"SELECT expires_at FROM {schema}.orisun_node")
        return when

    before = await expires()
    proxy.freeze()
    await asyncio.sleep(2.0)
    proxy.thaw()
    await proxy.cut()

    async def renewed() -> bool:
        return await expires() > before

    await eventually(renewed)
    assert lease.valid
    assert not lease.lost.is_set()
    assert a.node_id == lease.node_id


async def test_names_that_nobody_holds_are_forgotten_and_others_are_not(
    join: Join, database: Database, schema: str
) -> None:
    a = await join("a")
    for name in ("held", "released"):
        lease = await take(a, "subscriber", "orders", name)
    await lease.release()
    publisher = await take(a, "publisher", "orders")
    await publisher.release()
    await database.admin.execute(f"UPDATE {schema}.orisun_lease SET acquired_at = acquired_at - interval '2 hours'")
    await database.admin.execute(LeaseSql.for_schema(schema).forget, ["subscriber"], 3600.0)
    rows = await database.admin.fetch(f"SELECT kind, name FROM {schema}.orisun_lease ORDER BY 1")
    assert [tuple(row) for row in rows] == [("publisher", ""), ("subscriber", "held")]


async def test_what_a_lost_answer_took_is_given_back(
    join: Join, frozen_network: tuple[PostgresProxy, Database]
) -> None:
    _, through = frozen_network
    a, b = await join("a", ttl=2.0, through=through), await join("b", ttl=2.0)
    taken = 0
    for number in range(20):
        ask = asyncio.create_task(a.acquire("publisher", f"b{number}"))
        await asyncio.sleep(random.uniform(0, 0.002))
        ask.cancel()
        await asyncio.gather(ask, return_exceptions=True)
        taken += ask.cancelled()
    assert taken
    names = [f"b{number}" for number in range(20)]
    for lease in a.held("publisher"):
        await lease.release()
    got: list[Lease] = []

    async def all_of_them() -> bool:
        got.extend(await b.acquire_many("publisher", names, 20))
        return len(got) == 20

    await eventually(all_of_them)


async def test_contenders_take_turns(join: Join, pg_settings: Settings) -> None:
    """Six servers that take and give back two leases as fast as they can."""
    history, ended, turns = History(), time.monotonic() + 3, 0

    async def contend(number: int) -> None:
        nonlocal turns
        through = await Database.connect(pg_settings)
        try:
            leases = await join(f"n{number}", ttl=30, through=through)
            while time.monotonic() < ended or turns <= 100:
                for lease in await leases.acquire_many("publisher", ["b0", "b1"], 1 + turns % 2):
                    turns += 1
                    history.add(lease)
                    await asyncio.sleep(0)
                    await lease.release()
            await leases.stop()
        finally:
            await through.close()

    await asyncio.gather(*(contend(number) for number in range(6)))
    assert turns > 100


PROGRAM = """
import asyncio, os, sys
from orisun_server.environment import load
from orisun_server.storage.database import Database
from orisun_server.storage.leases import Leases

async def main():
    settings = load(os.environ).settings
    leases = Leases(await Database.connect(settings), settings.admin_schema, "child", float(sys.argv[1]))
    await leases.start()
    lease = await leases.acquire("publisher", "orders")
    print("took", lease.epoch, lease.valid, flush=True)
    while True:
        line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        if not line:
            return
        print("valid" if lease.valid else "invalid", flush=True)

asyncio.run(main())
"""


@pytest.mark.fault
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_stopped_process_finds_its_lease_gone(
    database: Database, make_settings: Callable[..., Settings], how: signal.Signals
) -> None:
    settings = make_settings()
    migrator = Migrator(database, settings.admin_schema)
    await migrator.apply([migrator.admin])
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, "3", env={**os.environ, **environment(settings)},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    leases = Leases(database, settings.admin_schema, "parent", 3)
    try:
        assert child.stdout is not None
        assert child.stdin is not None
        await leases.start()
        line = b""
        while not line.startswith(b"took"):
            line = await asyncio.wait_for(child.stdout.readline(), 60)
            assert line, "it ended"
        assert line.split() == [b"took", b"1", b"True"]
        assert await leases.acquire("publisher", "orders") is None
        child.send_signal(how)
        began = time.monotonic()
        lease = await take(leases, "publisher", "orders")
        assert lease.epoch == 2
        assert time.monotonic() - began < 10
        if how is signal.SIGSTOP:
            child.stdin.write(b"?\n")
            child.send_signal(signal.SIGCONT)
            answer = b""
            while answer.strip() not in (b"valid", b"invalid"):
                answer = await asyncio.wait_for(child.stdout.readline(), 60)
                assert answer, "it ended"
            assert answer.strip() == b"invalid"
            assert lease.valid
    finally:
        await leases.stop()
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.communicate()


@dataclass
class History:
    """What nodes came to hold; ``check`` is asked all the time."""

    grants: dict[str, list[Lease]] = field(default_factory=dict)

    def add(self, lease: Lease) -> None:
        grants = self.grants.setdefault(lease.boundary, [])
        assert not grants or grants[-1].epoch < lease.epoch, "an epoch did not grow"
        grants.append(lease)
        self.check()

    def check(self) -> None:
        for grants in self.grants.values():
            assert sum(lease.valid for lease in grants[-50:]) <= 1, grants[-50:]


@pytest.mark.fault
async def test_nodes_that_come_freeze_and_go_never_hold_one_lease_together(join: Join, pg_settings: Settings) -> None:
    """Five nodes, four leases, lifetimes of 0.6 s, networks that freeze for about as long at random."""
    history, ended = History(), time.monotonic() + 8
    boundaries = [f"b{number}" for number in range(4)]

    def granted() -> int:
        return sum(len(grants) for grants in history.grants.values())

    async def node(number: int) -> None:
        chance = random.Random(number)
        async with PostgresProxy(pg_settings) as proxy:
            through = await Database.connect(proxy.settings)
            leases = await join(f"n{number}", ttl=0.6, through=through)
            try:
                while time.monotonic() < ended or granted() <= 12:
                    history.check()
                    with contextlib.suppress(Unavailable):
                        for lease in await leases.acquire_many("publisher", boundaries, chance.randint(1, 2)):
                            history.add(lease)
                    await asyncio.sleep(chance.uniform(0, 0.05))
                    if chance.random() < 0.2:
                        for lease in leases.held("publisher"):
                            await lease.release()
                    if chance.random() < 0.08:
                        proxy.freeze()
                        asyncio.get_running_loop().call_later(chance.uniform(0.1, 1.2), proxy.thaw)
                    if chance.random() < 0.05:
                        await proxy.cut()
            finally:
                proxy.thaw()
                await leases.stop()
                await through.close()

    async def watch() -> None:
        while time.monotonic() < ended or granted() <= 12:
            history.check()
            await asyncio.sleep(0.002)

    await asyncio.gather(watch(), *(node(number) for number in range(5)))
    assert granted() > 12


# -- the statements against a model ------------------------------------------------------------------------------------

NODES, KEYS = ("x", "y"), ("k1", "k2")
STEPS = st.one_of(
    st.tuples(st.just("join"), st.sampled_from(NODES)),
    st.tuples(st.just("renew"), st.sampled_from(NODES)),
    st.tuples(st.just("expire"), st.sampled_from(NODES)),
    st.tuples(st.just("leave"), st.sampled_from(NODES)),
    st.tuples(st.just("release"), st.sampled_from(NODES), st.sampled_from(KEYS)),
    st.tuples(st.just("sweep"), st.sampled_from(NODES), st.sets(st.sampled_from(KEYS))),
    st.tuples(
        st.just("acquire"), st.sampled_from(NODES), st.sets(st.sampled_from(KEYS), min_size=1), st.integers(1, 3)
    ),
)


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(steps=st.lists(STEPS, min_size=15, max_size=40))
async def test_the_statements_follow_a_model(database: Database, schema: str, steps: list[tuple[Any, ...]]) -> None:
    sql, pool = LeaseSql.for_schema(schema), database.admin
    await pool.execute(f"TRUNCATE {schema}.orisun_node, {schema}.orisun_lease")
    there: dict[str, bool] = {}  # node to whether it is alive
    leases: dict[str, tuple[str, int, int]] = {}  # key to holder, epoch, token
    token = 0

    def is_free(key: str, node: str) -> bool:
        return key not in leases or leases[key][0] == node or leases[key][0] not in there

    for step in steps:
        match step:
            case ("join", node) if node not in there:
                # a node_id is never used again; the model gives its leases up instead
                leases = {k: ("", e, t) if h == node else (h, e, t) for k, (h, e, t) in leases.items()}
                await pool.execute(f"UPDATE {schema}.orisun_lease SET node_id = '' WHERE node_id = $1", node)
                await pool.execute(sql.join, node, 60.0, "server")
                there[node] = True
            case ("renew", node):
                assert bool(await pool.fetchval(sql.renew, node, 60.0)) == there.get(node, False)
            case ("expire", node) if node in there:
                await pool.execute(
                    f"UPDATE {schema}.orisun_node SET expires_at = clock_timestamp() WHERE node_id = $1", node
                )
                there[node] = False
            case ("leave", node):
                await pool.execute(sql.leave, node)
                there.pop(node, None)
            case ("release", node, key):
                held = leases.get(key)
                await pool.execute(sql.release, node, "p", key, "", held[2] if held else 0)
                if held is not None and held[0] == node:
                    leases[key] = ("", *held[1:])
            case ("sweep", node, keep):
                kept = [leases[key][2] for key in keep if key in leases]
                await pool.execute(sql.sweep, node, kept, token)
                leases = {
                    k: ("", e, t) if h == node and t not in kept else (h, e, t) for k, (h, e, t) in leases.items()
                }
            case ("acquire", node, keys, limit):
                there = {name: alive for name, alive in there.items() if alive}
                asked = {key: token + number for number, key in enumerate(sorted(keys), 1)}
                token += len(asked)
                rows = await pool.fetch(sql.acquire, node, "p", list(asked), "", list(asked.values()), limit)
                free = {key for key in keys if is_free(key, node)} if node in there else set()
                assert len(rows) == min(limit, len(free))
                assert {row["boundary"] for row in rows} <= free
                for row in rows:
                    key, before = row["boundary"], leases.get(row["boundary"], ("", 0, 0))
                    assert (row["epoch"], row["token"]) == (before[1] + 1, asked[key])
                    leases[key] = (node, row["epoch"], row["token"])
        living = sum(there.values())
        assert await pool.fetchval(sql.live_nodes, "server") == living
        held = {key for key, (holder, _, _) in leases.items() if there.get(holder)}
        assert await pool.fetch(sql.free, "p", list(KEYS)) == [(key,) for key in KEYS if key not in held]
