"""Publishers that rest: what they cost, and that nothing is skipped although nobody tells them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest

from orisun_server.settings import Settings
from orisun_server.storage.catalog import Boundary
from tests.harness import eventually, is_quick
from tests.integration.nodes import Node, Subscriber

MakeSettings = Callable[..., Settings]
Many = tuple[Node, Node]


@pytest.fixture
async def statements(pg_dsn: str) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """How many transactions PostgreSQL has committed so far; sessions tell it once a second."""
    connection = await asyncpg.connect(pg_dsn)
    yield lambda: connection.fetchval("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
    await connection.close()


@asynccontextmanager
async def publishing_and_silent(settings: Settings) -> AsyncIterator[Many]:
    """A server that publishes everything and hears LISTEN, and one that appends and tells nobody."""
    silent = settings.model_copy(update={"pg_listen_enabled": False})
    async with Node(settings) as node, Node(silent, publishing=False) as other:
        await eventually(lambda: len(node.publishers.published_here()) == len(settings.boundaries))
        await eventually(lambda: node.signals.heard)
        yield node, other


def boundaries(node: Node) -> list[Boundary]:
    return [node.catalog.get(boundary.name) for boundary in node.settings.boundaries]


async def at_rest(node: Node) -> None:
    """Waits until every publisher has been seen by the lookout and has nothing to do."""
    publishers = [publisher for publisher, _ in node.publishers._running.values()]
    await eventually(lambda: set(publishers) <= node.lookout._watchers.keys())
    await eventually(lambda: not any(publisher._wake.is_set() for publisher in publishers))


async def is_under(limit: float, rate: Callable[[], Awaitable[float]]) -> bool:
    return await rate() < limit


async def test_two_hundred_boundaries_at_rest_cost_a_few_statements(
    make_settings: MakeSettings, statements: Callable[[], Awaitable[int]]
) -> None:
    """One each would be 200 a second; the rest is heartbeats, the catalog and the supervisor."""
    settings = make_settings(*(f"b{number}" for number in range(200)))
    async with Node(settings) as node:
        await eventually(lambda: len(node.publishers.published_here()) == 201, timeout=30)
        await eventually(lambda: len(node.lookout._watchers) == 201, timeout=30)
        await at_rest(node)

        async def rate() -> float:
            before, began = await statements(), time.monotonic()
            await asyncio.sleep(3)
            return (await statements() - before) / (time.monotonic() - began)

        # sessions tell PostgreSQL some time later what they did before
        await eventually(lambda: is_under(40, rate), timeout=30, message="fewer than 40 statements a second")
        # and they notice all the same
        silent = settings.model_copy(update={"pg_listen_enabled": False})
        async with Node(silent, publishing=False) as other:
            for boundary in (boundaries(node)[0], boundaries(node)[199]):
                await other.append(1, boundary=boundary)
                await eventually(lambda boundary=boundary: node.published(boundary))


async def test_what_nobody_tells_is_published_within_moments(make_settings: MakeSettings) -> None:
    async with publishing_and_silent(make_settings(*(f"b{number}" for number in range(60)))) as (node, other):
        await at_rest(node)
        for boundary in boundaries(node):
            await other.append(1, 2, boundary=boundary)
        for boundary in boundaries(node):
            await eventually(lambda boundary=boundary: node.published(boundary))
        # again, since every publisher has moved on
        for boundary in boundaries(node)[::7]:

            async def is_published(boundary: Boundary = boundary) -> float:
                began = time.monotonic()
                await other.append(3, boundary=boundary)
                await eventually(lambda: node.published(boundary))
                return time.monotonic() - began

            await is_quick(is_published, 4)


async def test_signals_wake_before_the_lookout_does(make_settings: MakeSettings) -> None:
    settings = make_settings(publisher_poll_interval=3600)
    async with Node(settings) as node, Node(settings, publishing=False) as other:
        await eventually(lambda: node.signals.heard)
        for number in range(5):
            await eventually(node.published)
            await other.append(number)
        await eventually(node.published)


async def test_a_signal_that_could_not_be_sent_is_sent_later(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever PostgreSQL says to NOTIFY: neither the signal nor those after it are lost."""
    settings = make_settings(publisher_poll_interval=3600)
    async with Node(settings) as node, Node(settings, publishing=False) as other:
        await eventually(lambda: node.signals.heard)
        await eventually(node.published)
        with monkeypatch.context() as patch:
            patch.setattr("orisun_server.delivery.signals._SEND", "SELECT no_such_function($1, $2::text[])")
            await other.append(1)
            await asyncio.sleep(0.3)
            assert not await node.published()
        await eventually(node.published)
        await other.append(2)
        await eventually(node.published)


async def test_a_locked_or_missing_table_blinds_nobody_else(make_settings: MakeSettings, pg_dsn: str) -> None:
    async with publishing_and_silent(make_settings("a", "locked", "missing", "z")) as (node, other):
        first, locked, missing, last, _ = boundaries(node)
        await at_rest(node)
        connection = await asyncpg.connect(pg_dsn)
        try:
            await connection.execute(f"ALTER TABLE {missing.names.q_events} RENAME TO elsewhere")
            async with connection.transaction():
                await connection.execute(f"LOCK TABLE {locked.names.q_events}")
                for boundary in (first, last):
                    await other.append(1, boundary=boundary)
                    await eventually(lambda boundary=boundary: node.published(boundary))
            await other.append(1, boundary=locked)
            await eventually(lambda: node.published(locked))
        finally:
            await connection.close()


async def test_it_gives_way_to_who_locks_several_tables(make_settings: MakeSettings, pg_dsn: str) -> None:
    """One statement holds locks of many tables: a deadlock must never end the other's transaction."""
    async with publishing_and_silent(make_settings("a", "z")) as (node, _):
        first, last, _ = boundaries(node)
        await at_rest(node)
        await eventually(lambda: node.lookout._connection is not None)
        pid = node.lookout._connection.get_server_pid()  # type: ignore[union-attr]
        connection, beside = await asyncpg.connect(pg_dsn), await asyncpg.connect(pg_dsn)
        try:
            async with connection.transaction():
                await connection.execute(f"LOCK TABLE {last.names.q_events}")
                waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)"
                await eventually(lambda: beside.fetchval(waits, pid), interval=0.005)
                # PostgreSQL looks for a deadlock when somebody has waited for a second, and ends that one's transaction
                await asyncio.sleep(1.2)
                await connection.execute(f"LOCK TABLE {first.names.q_events}")
        finally:
            await connection.close()
            await beside.close()


async def test_it_goes_on_after_its_connection_was_cut(make_settings: MakeSettings, pg_dsn: str) -> None:
    async with publishing_and_silent(make_settings()) as (node, other):
        await at_rest(node)
        await eventually(lambda: node.lookout._connection is not None)
        connection = await asyncpg.connect(pg_dsn)
        pid = node.lookout._connection.get_server_pid()  # type: ignore[union-attr]
        await connection.execute("SELECT pg_terminate_backend($1)", pid)
        await connection.close()
        await other.append(1)
        await eventually(node.published)


async def test_a_live_subscription_hears_of_what_nobody_publishes(make_settings: MakeSettings) -> None:
    """The stream is alive, its publisher is not."""
    async with publishing_and_silent(make_settings()) as (node, other), Subscriber(node) as subscriber:
        await node.append(1)
        await subscriber.has(1)
        await subscriber.is_live()
        for publisher, _ in node.publishers._running.values():
            publisher.wake = publisher.saw = lambda *_: None  # type: ignore[method-assign]

        async def hears() -> float:
            count, began = len(subscriber.events), time.monotonic()
            await other.append(count)
            await subscriber.has(count + 1)
            return time.monotonic() - began

        await is_quick(hears, 6)


async def test_nothing_is_watched_any_more_when_nobody_is_there(settings: Settings) -> None:
    async with Node(settings) as node:
        async with Subscriber(node) as subscriber:
            await eventually(lambda: len(node.publishers.published_here()) == 2)
            await node.append(1)
            await subscriber.has(1)
            await subscriber.is_live()
            await eventually(lambda: len(node.lookout._watchers) == 3)
        await node.tails.stop()
        await node.publishers.stop()
        assert not node.lookout._watchers
