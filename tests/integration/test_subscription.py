"""Catch-up subscriptions on real PostgreSQL and NATS: every event once and in order, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import statistics
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from orisun_server.core.criteria import query
from orisun_server.core.event import NewEvent
from orisun_server.core.position import NOTHING, Position
from orisun_server.delivery import inbox as inboxes
from orisun_server.errors import AlreadyExists, InvalidArgument, OutOfRange, Unavailable
from orisun_server.settings import MIN_PAYLOAD, Settings
from tests.harness import eventually, is_quick
from tests.integration.nodes import NatsServer, Node, Subscriber, nats_server

MakeSettings = Callable[..., Settings]


@pytest.fixture
async def node(settings: Settings) -> AsyncIterator[Node]:
    async with Node(settings) as node:
        yield node


@pytest.fixture
async def own_nats(directory: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(directory) as server:
        yield server


@pytest.fixture
async def apart(make_settings: MakeSettings, own_nats: NatsServer) -> AsyncIterator[Node]:
    """A node with a nats-server of its own."""
    async with Node(make_settings(nats_url=SecretStr(own_nats.url))) as node:
        yield node


async def test_what_is_stored_comes_first_and_then_what_is_new(node: Node) -> None:
    for number in range(5):
        await node.append(number)
    async with Subscriber(node) as subscriber:
        await subscriber.has(5)
        await subscriber.is_live()
        await node.append(5, 6)
        await subscriber.has(7)
        assert subscriber.events == await node.stored()


async def test_no_gap_duplicate_or_reorder_while_others_write(node: Node) -> None:
    """Subscriptions that begin at any moment and position of a busy boundary."""
    busy = True

    async def write(seed: int) -> None:
        chance = random.Random(seed)
        while busy:
            await node.append(*range(chance.randint(1, 5)))
            await asyncio.sleep(chance.random() / 200)

    writers = [asyncio.create_task(write(seed)) for seed in range(4)]
    chance = random.Random(0)
    async with contextlib.AsyncExitStack() as open_subscribers:
        subscribers: list[tuple[Position, Subscriber]] = []
        for _ in range(25):
            await asyncio.sleep(chance.random() / 10)
            stored = await node.stored()
            after = NOTHING if chance.random() < 0.5 or not stored else chance.choice(stored)[0]
            subscribers.append((after, await open_subscribers.enter_async_context(Subscriber(node, after=after))))
        busy = False
        await asyncio.gather(*writers)
        stored = await node.stored()
        for after, subscriber in subscribers:
            expected = [event for event in stored if event[0] > after]
            await subscriber.has(len(expected))
            assert subscriber.events == expected


@pytest.mark.parametrize("after", [None, Position(0, 0), NOTHING])
async def test_positions_that_mean_the_beginning(node: Node, after: Position | None) -> None:
    async with Subscriber(node, after=after) as subscriber:
        await node.append(0)
        await subscriber.has(1)
        assert subscriber.events == await node.stored()


async def test_a_position_is_exclusive_and_may_lie_inside_a_batch(node: Node) -> None:
    await node.append(0, 1, 2)
    await node.append(3)
    stored = await node.stored()
    async with Subscriber(node, after=stored[1][0]) as inside, Subscriber(node, after=stored[3][0]) as at_head:
        await inside.has(2)
        await node.append(4)
        await inside.has(3)
        await at_head.has(1)
        stored = await node.stored()
        assert inside.events == stored[2:]
        assert at_head.events == stored[4:]


@pytest.mark.parametrize("events", [0, 2])
async def test_a_position_beyond_the_head_is_of_another_history(node: Node, events: int) -> None:
    if events:
        await node.append(*range(events))
    async with Subscriber(node, after=Position(events + 1, events)) as subscriber:
        await asyncio.wait([subscriber.task], timeout=30)
        assert isinstance(subscriber.failure, OutOfRange)


async def test_criteria_hold_for_what_is_stored_and_what_is_new(node: Node) -> None:
    async def is_wanted(event_id: str) -> bool:
        row = await node.database.admin.fetchrow(
            f"SELECT event_type, data FROM {node.boundary.names.q_events} WHERE event_id = $1", event_id
        )
        return (row[0] == "Type1" and json.loads(row[1])["n"] == 4) or json.loads(row[1])["n"] == 7

    wanted = query([[("eventType", "Type1"), ("n", "4")], [("n", "7")]])
    await node.append(*range(10))
    async with Subscriber(node, query=wanted) as subscriber:
        await subscriber.has(2)
        await subscriber.is_live()
        for number in range(10):
            await node.append(number)
        await subscriber.has(4)
        expected = [event for event in await node.stored() if await is_wanted(event[1])]
        assert subscriber.events == expected


async def test_a_name_is_exclusive_over_servers_and_free_at_once_after_cancel(settings: Settings) -> None:
    async with Node(settings) as one, Node(settings) as other:
        await one.append(0)
        async with Subscriber(one, name="é x*>") as first:
            await first.has(1)
            for node in (one, other):
                async with asyncio.timeout(30), Subscriber(node, name="é x*>") as second:
                    await second.task
                    assert isinstance(second.failure, AlreadyExists)
        async with Subscriber(other, name="é x*>") as third:
            await third.has(1)
        assert not one.leases.held("subscriber")
        await eventually(lambda: not other.leases.held("subscriber"))


@pytest.mark.parametrize("name", ["", "x" * 256, "a\0b"])
async def test_names_that_cannot_be(node: Node, name: str) -> None:
    with pytest.raises(InvalidArgument):
        await anext(node.subscriptions.subscribe(node.boundary, (), None, name))


async def test_a_slow_client_stalls_alone_and_catches_up(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inboxes, "MAX_MESSAGES", 50)
    async with Subscriber(node) as slow, Subscriber(node) as fast:
        await node.append(0)
        await slow.has(1)
        await slow.is_live()
        slow.resume.clear()
        for number in range(1, 300):
            await node.append(number)
        await fast.has(300)
        assert len(slow.events) <= 2
        (tail,) = node.tails.of(node.boundary.name)
        assert sum(not inbox.intact for inbox in tail.inboxes) == 1
        assert all(len(inbox._messages) <= 50 for inbox in tail.inboxes)
        slow.resume.set()
        await slow.has(300)
        await slow.is_live()
        await node.append(300)
        await slow.has(301)
        await fast.has(301)
        assert slow.events == fast.events == await node.stored()


async def test_many_subscriptions_share_one_tail(node: Node) -> None:
    async with contextlib.AsyncExitStack() as stack:
        subscribers = [await stack.enter_async_context(Subscriber(node)) for _ in range(100)]
        await node.append(0)
        for subscriber in subscribers:
            await subscriber.has(1)
        await subscribers[0].is_live()
        for number in range(1, 51):
            await node.append(number)
        stored = await node.stored()
        for subscriber in subscribers:
            await subscriber.has(51)
            assert subscriber.events == stored
        assert len(node.tails.of(None)) == 1
        # and NATS sends each event once, however many there are
        info = await node.nats.connection.jetstream.stream_info(node.stream_of(node.boundary.name))
        assert info.state.consumer_count == 1


async def test_live_delivery_is_quick(node: Node) -> None:
    loop = asyncio.get_running_loop()
    arrived: list[float] = []
    async with Subscriber(node, on_event=lambda: arrived.append(loop.time())) as subscriber:
        await node.append(0)
        await subscriber.has(1)
        await subscriber.is_live()

        async def half_take() -> float:
            delays = []
            for _ in range(25):
                count = len(arrived)
                await node.append(count)
                committed = loop.time()
                await subscriber.has(count + 1)
                delays.append(arrived[-1] - committed)
            return statistics.median(delays)

        # whoever polls takes half a second
        await is_quick(half_take, 0.05)


async def test_an_event_larger_than_a_message_of_nats(node: Node) -> None:
    async with Subscriber(node) as subscriber:
        await node.append(0)
        await subscriber.has(1)
        await subscriber.is_live()
        await node.append(1, padding=2_000_000)
        await node.append(2)
        await node.append(3, padding=1_048_576 - 300)
        await node.append(4)
        await subscriber.has(5)
        assert subscriber.events == await node.stored()
        await eventually(node.published)


@pytest.mark.fault
async def test_the_least_payload_is_enough_for_any_event(make_settings: MakeSettings, directory: Path) -> None:
    configuration = directory / "least.conf"
    configuration.write_text(f"max_payload: {MIN_PAYLOAD}")
    async with (
        nats_server(directory, "-c", str(configuration)) as nats,
        Node(make_settings(nats_url=SecretStr(nats.url))) as node,
        Subscriber(node) as subscriber,
    ):
        await node.append(0)
        await subscriber.has(1)
        await subscriber.is_live()
        connection = node.nats.connection
        # the longest message ids, on events that fit or become pointers, first and last in a batch
        for number, padding in enumerate((0, 2_900, 3_000, 3_100, 4_000, 8_000, MIN_PAYLOAD)):
            events = [
                NewEvent(chr(0x1F600 + number) * 254 + last, "Long", f'{{"pad": "{"x" * padding}"}}', "{}")
                for last in "abc"
            ]
            await node.appender.append(node.boundary, events, None)
        await subscriber.has(22)
        await eventually(node.published)
        assert subscriber.events == await node.stored()
        state = (await connection.jetstream.stream_info(node.stream_of(node.boundary.name))).state
        assert state.messages == 22
        assert not connection.lost.is_set()


async def test_without_nats_subscriptions_poll(make_settings: MakeSettings) -> None:
    async with Node(make_settings(nats_url=SecretStr("nats://127.0.0.1:1"))) as node, Subscriber(node) as subscriber:
        for number in range(20):
            await node.append(number)
        await subscriber.has(20)
        assert subscriber.events == await node.stored()


@pytest.mark.fault
@pytest.mark.parametrize("wiped", [False, True])
async def test_nats_killed_and_restarted(apart: Node, own_nats: NatsServer, wiped: bool) -> None:
    async with Subscriber(apart) as subscriber:
        await apart.append(0)
        await subscriber.has(1)
        await subscriber.is_live()
        writing = asyncio.create_task(_write(apart, 300))
        await subscriber.has(50)
        await own_nats.kill()
        await subscriber.has(len(subscriber.events) + 20)
        if wiped:
            own_nats.wipe()
        await own_nats.start()
        await writing
        await subscriber.has(301)
        await eventually(apart.published)
        await subscriber.is_live()
        await apart.append(301)
        await subscriber.has(302)
        assert subscriber.events == await apart.stored()


@pytest.mark.fault
async def test_nats_that_hangs(apart: Node, own_nats: NatsServer) -> None:
    async with Subscriber(apart) as subscriber:
        await apart.append(0)
        await subscriber.has(1)
        await subscriber.is_live()
        own_nats.signal(signal.SIGSTOP)
        await _write(apart, 20)
        await subscriber.has(21)
        own_nats.signal(signal.SIGCONT)
        await eventually(apart.published, 20)
        await _write(apart, 20)
        await subscriber.has(41)
        assert subscriber.events == await apart.stored()


async def test_nobody_publishes(make_settings: MakeSettings) -> None:
    """A stream that nothing comes into does not hold subscriptions up."""
    settings = make_settings()
    async with Node(settings) as node, Subscriber(node) as subscriber:
        await node.append(0)
        await subscriber.has(1)
        await subscriber.is_live()
        await node.publishers.stop()
        for number in range(1, 4):
            await node.append(number)
            await subscriber.has(number + 1)
        assert subscriber.events == await node.stored()


async def test_a_lost_message_is_noticed_and_read_from_postgresql(settings: Settings) -> None:
    async with Node(settings) as node, Subscriber(node) as subscriber:
        await node.append(0)
        await subscriber.has(1)
        await subscriber.is_live()
        (tail,) = node.tails.of(node.boundary.name)
        (inbox,) = tail.inboxes
        # this inbox misses three messages without being told
        tail.inboxes.clear()
        await node.append(1, 2, 3)
        await eventually(node.published)
        tail.inboxes.add(inbox)
        await node.append(4)
        await subscriber.has(5)
        assert subscriber.events == await node.stored()


async def test_a_lost_name_ends_the_subscription(make_settings: MakeSettings) -> None:
    settings = make_settings(node_ttl=1.5)
    async with Node(settings) as node, Subscriber(node) as subscriber:
        await node.append(0)
        await subscriber.has(1)
        await node.database.admin.execute(f'DELETE FROM "{settings.admin_schema}".orisun_node')
        await asyncio.wait([subscriber.task], timeout=30)
        assert isinstance(subscriber.failure, Unavailable)


async def test_a_server_that_stops_ends_its_subscriptions(settings: Settings) -> None:
    async with Node(settings) as node:
        subscriber = Subscriber(node)
        async with subscriber:
            await node.append(0)
            await subscriber.has(1)
            await node.subscriptions.stop()
            await asyncio.wait([subscriber.task], timeout=30)
            assert isinstance(subscriber.failure, Unavailable)
        async with Subscriber(node) as late:
            await late.task
            assert isinstance(late.failure, Unavailable)


async def test_nothing_is_left_of_closed_subscriptions(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orisun_server.delivery.live_tail.LINGER", 0.1)
    for _ in range(3):
        async with contextlib.AsyncExitStack() as stack:
            subscribers = [await stack.enter_async_context(Subscriber(node)) for _ in range(10)]
            await node.append(0)
            for subscriber in subscribers:
                await subscriber.has(1)
    await eventually(lambda: not node.tails.of(None))

    def left() -> list[str]:
        names = [task.get_name() for task in asyncio.all_tasks()]
        return [name for name in names if name.startswith(("subscription", "tail"))]

    await eventually(lambda: not left())
    info = await node.nats.connection.jetstream.stream_info(node.stream_of(node.boundary.name))
    assert info.state.consumer_count == 0


async def _write(node: Node, count: int) -> None:
    for number in range(count):
        await node.append(number)
        await asyncio.sleep(0.005)
