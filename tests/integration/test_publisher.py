"""Publishing on real PostgreSQL and NATS: one publisher a boundary, nothing skipped, twice or out of order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from nats.js import api
from nats.js.errors import NotFoundError
from pydantic import SecretStr

from orisun_api import eventstore_pb2
from orisun_server.core.event import Event, NewEvent
from orisun_server.core.position import NOTHING
from orisun_server.delivery import publisher as publisher_module
from orisun_server.delivery.nats import NATS_ERRORS
from orisun_server.delivery.publisher import Publisher
from orisun_server.delivery.store import level
from orisun_server.delivery.stream import POSITION, PREVIOUS, EventStream, parse_position
from orisun_server.errors import OutOfRange
from orisun_server.settings import Settings
from orisun_server.storage.catalog import Boundary
from tests.harness import eventually, free_port, is_quick
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


class Streamed:
    """What a boundary's stream holds."""

    def __init__(self, messages: list[tuple[dict[str, str], bytes]]) -> None:
        self.headers = [headers for headers, _ in messages]
        self.bodies = [body for _, body in messages]
        self.positions = [parse_position(headers[POSITION]) for headers in self.headers]
        self.previous = [parse_position(headers[PREVIOUS]) for headers in self.headers]


async def streamed(node: Node) -> Streamed:
    connection = node.nats.connection
    stream = node.stream_of(node.boundary.name)
    state = (await connection.jetstream.stream_info(stream)).state
    messages: list[tuple[dict[str, str], bytes]] = []
    complete = asyncio.Event()

    async def receive(message: Any) -> None:
        messages.append((message.headers or {}, message.data))
        if len(messages) == state.messages:
            complete.set()

    if state.messages:
        inbox = connection.client.new_inbox()
        subscription = await connection.client.subscribe(inbox, cb=receive)
        await connection.jetstream.add_consumer(
            stream,
            api.ConsumerConfig(deliver_subject=inbox, ack_policy=api.AckPolicy.NONE, mem_storage=True, num_replicas=1),
        )
        await asyncio.wait_for(complete.wait(), 30)
        await subscription.unsubscribe()
    return Streamed(messages)


async def assert_streamed_once_and_in_order(node: Node, since: int = 0, found: Streamed | None = None) -> None:
    """The stream holds every event from a number on, each naming the one before it; ``found`` was read from it."""
    await eventually(node.published)
    stored = [position for position, _ in await node.stored()]
    found = found or await streamed(node)
    assert found.positions == stored[since:]
    assert found.previous == ([NOTHING, *stored][since:-1] if stored else [])


async def test_every_event_once_and_in_order_with_its_headers(node: Node) -> None:
    await node.append(0, 1, 2)
    await node.append(3)
    await eventually(node.published)
    stored = await node.stored()
    found = await streamed(node)
    assert found.positions == [position for position, _ in stored]
    assert found.previous == [NOTHING, *found.positions[:-1]]
    assert [headers["Nats-Msg-Id"] for headers in found.headers] == [f"{p.prepare}-{i}" for p, i in stored]
    events = [eventstore_pb2.Event.FromString(body) for body in found.bodies]
    assert [event.event_id for event in events] == [event_id for _, event_id in stored]


async def test_the_checkpoint_counts_events_over_restarts_and_gaps(settings: Settings) -> None:
    async with Node(settings) as node:
        await node.append(0, 1, 2)
        await eventually(node.published)
        assert (await node.checkpoint())[1] == 3
        # a failed append leaves a gap of numbers
        await node.database.admin.execute(
            f"SELECT nextval('{node.boundary.names.qualified(node.boundary.names.sequence)}')"
        )
    async with Node(settings) as node:
        await node.append(3, 4)
        await eventually(node.published)
        assert (await node.checkpoint())[1] == 5
        # one that was not stored in time is counted again from where it stood
        await node.publishers.stop()
        await node.database.admin.execute(
            f"UPDATE {node.boundary.names.q_published} SET transaction_id = 3, global_id = 1, event_count = 2"
        )
    async with Node(settings) as node:
        await eventually(node.published)
        await node.append(5)
        await assert_streamed_once_and_in_order(node)
        assert (await node.checkpoint())[1] == 6


async def test_a_boundary_made_anew_elsewhere_is_published_from_there(node: Node) -> None:
    name = node.boundary.name
    await eventually(lambda: name in node.publishers.published_here())
    elsewhere = Boundary.at(name, "elsewhere")
    node.catalog._active[name] = elsewhere
    await eventually(lambda: [one.boundary for one, _ in node.publishers._running.values()].count(elsewhere) == 1)


@pytest.mark.parametrize("refused", [True, False])
async def test_the_stream_of_a_boundary_that_is_gone_goes_too(node: Node, refused: bool) -> None:
    """Not that of a boundary whose schema has only become too new for this server."""
    await node.append(1)
    await eventually(node.published)
    boundary = node.boundary
    del node.catalog._active[boundary.name]
    if refused:
        node.catalog._refused = {boundary.name: "it needs a newer server"}
    await eventually(lambda: boundary.name not in node.publishers.published_here())

    async def is_free() -> bool:
        return await node.leases.free("publisher", [boundary.name]) == [boundary.name]

    await eventually(is_free)
    with contextlib.nullcontext() if refused else pytest.raises(NotFoundError):
        await node.nats.connection.jetstream.stream_info(node.stream_of(boundary.name))


async def test_a_backlog_in_many_batches(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_settings(polling_publisher_batch_size=7)
    batches: list[int] = []
    publish = EventStream.publish

    async def counted(stream: EventStream, events: list[Event], *arguments: Any) -> None:
        batches.append(len(events))
        await publish(stream, events, *arguments)

    monkeypatch.setattr(EventStream, "publish", counted)
    async with Node(settings, publishing=False) as node:
        for _ in range(10):
            await node.append(*range(10))
        await node.run(node.publishers)
        await assert_streamed_once_and_in_order(node)
    assert (sum(batches), max(batches)) == (100, 7)


async def test_ids_of_any_text(node: Node) -> None:
    ids = ["a b", "é\r\nNats-Msg-Id: x", "100%", "😀" * 255, "\t"]
    for event_id in ids:
        await node.appender.append(node.boundary, [NewEvent(event_id, "T", "{}", "{}")], None)
    await assert_streamed_once_and_in_order(node)
    events = [eventstore_pb2.Event.FromString(body) for body in (await streamed(node)).bodies]
    assert [event.event_id for event in events] == ids


@pytest.mark.parametrize("listens", [True, False])
async def test_events_of_another_server_are_published_soon(make_settings: MakeSettings, listens: bool) -> None:
    """By NOTIFY alone, or by polling alone."""
    settings = make_settings(pg_listen_enabled=listens, publisher_poll_interval=3600 if listens else 1)
    async with Node(settings) as publishing, Node(settings, publishing=False) as other:
        await eventually(lambda: len(publishing.publishers.published_here()) == 2)
        assert await eventually(lambda: publishing.signals.heard == listens)
        async with Subscriber(other) as subscriber:
            await other.append(0)
            await subscriber.has(1)
            await subscriber.is_live()

            async def arrives() -> float:
                count, began = len(subscriber.events), time.monotonic()
                await other.append(count)
                await subscriber.has(count + 1)
                return time.monotonic() - began

            for _ in range(5):
                await is_quick(arrives, 2)


async def test_servers_share_the_boundaries_and_hand_over_at_a_clean_stop(make_settings: MakeSettings) -> None:
    settings = make_settings("a", "b", "c", "d", "e")
    names = [boundary.name for boundary in settings.boundaries]
    with structlog.testing.capture_logs() as logs:
        async with Node(settings) as one:
            await eventually(lambda: one.publishers.published_here() == sorted(names))
            rounds = 0

            async def hands_over() -> float:
                nonlocal rounds
                rounds += 1
                async with Node(settings) as other:
                    await eventually(lambda: len(other.publishers.published_here()) == 3)
                    await eventually(lambda: len(one.publishers.published_here()) == 3)
                    both = one.publishers.published_here() + other.publishers.published_here()
                    assert sorted(both) == sorted(names)
                began = time.monotonic()
                await eventually(lambda: one.publishers.published_here() == sorted(names))
                return time.monotonic() - began

            await is_quick(hands_over, 2)
    said = [entry["event"] for entry in logs]
    for name in names:
        assert f"Successfully acquired lock for boundary: {name}" in said
        assert said.count(f"Failed to acquire lock for boundary: {name}") <= 2 * rounds


async def test_a_server_that_cannot_publish_leaves_its_share_to_others(make_settings: MakeSettings) -> None:
    settings = make_settings("a", "b", "c")
    async with Node(settings) as one, Node(settings, publishing=False) as other:
        await eventually(lambda: len(one.publishers.published_here()) == 4)
        await other.run(other.publishers)
        await eventually(lambda: len(one.publishers.published_here()) == 2)
        await eventually(lambda: len(other.publishers.published_here()) == 2)


async def test_handover_under_load(make_settings: MakeSettings) -> None:
    """Publishers come and go while a third server writes; the stream has each event once, in order."""
    settings = make_settings("a", node_ttl=2)
    async with Node(settings, publishing=False) as writer, Subscriber(writer) as subscriber:
        writing = True

        async def write() -> None:
            while writing:
                await writer.append(0, 1)
                await asyncio.sleep(0.002)

        task = asyncio.create_task(write())
        for clean in (True, False, True, False):
            async with Node(settings) as node:
                await eventually(lambda node=node: writer.boundary.name in node.publishers.published_here())
                count = len(subscriber.events)
                await subscriber.has(count + 100)
                if not clean:
                    await crash(node)
        writing = False
        await task
        stored = await writer.stored()
        await subscriber.has(len(stored))
        assert subscriber.events == stored
        async with Node(settings):
            await assert_streamed_once_and_in_order(writer)


async def crash(node: Node) -> None:
    """Takes a server out of the game as SIGKILL would: it tells nobody."""
    for _, task in node.publishers._running.values():
        task.cancel()
    assert node.publishers._task is not None
    node.publishers._task.cancel()
    assert node.leases._task is not None
    node.leases._task.cancel()
    node.leases._joined = False


async def test_a_crash_is_succeeded_within_ten_seconds(make_settings: MakeSettings) -> None:
    settings = make_settings()
    async with Node(settings) as node:
        await node.append(0)
        await eventually(node.published)
        await crash(node)
        await node.append(1)
        async with Node(settings) as other:
            await eventually(other.published, timeout=15)  # some of it is this server's start
            await assert_streamed_once_and_in_order(other)


async def test_a_crash_beside_a_server_that_cannot_publish_is_succeeded_as_soon(make_settings: MakeSettings) -> None:
    """That one lives and has a share, which it does not take: two faults at once, and still ten seconds at most."""
    settings = make_settings("a", "b", "c", "d", "e", node_ttl=1.5)
    names = sorted(boundary.name for boundary in settings.boundaries)

    async def succeeded() -> float:
        async with Node(settings) as one, Node(settings) as other, Node(settings, publishing=False):
            await eventually(lambda: len(other.publishers.published_here()) >= 2)
            await eventually(
                lambda: sorted(one.publishers.published_here() + other.publishers.published_here()) == names
            )
            await crash(one)

            async def is_forgotten() -> bool:
                return await other.leases.live_nodes() == 2

            await eventually(is_forgotten)
            began = time.monotonic()
            await eventually(lambda: other.publishers.published_here() == names)
            return time.monotonic() - began

    # of the ten seconds the lease takes six (ORISUN_NODE_TTL)
    await is_quick(succeeded, 2.9, tries=2)


class Stale:
    """A lease that is believed in although another server has it."""

    def __init__(self, epoch: int, valid: bool = True) -> None:
        self.epoch, self.valid = epoch, valid
        self.lost = asyncio.Event()


@contextlib.asynccontextmanager
async def publisher(
    node: Node, epoch: int, quiet_for: Callable[[], float] = lambda: 0.0
) -> AsyncIterator[tuple[Publisher, Stale]]:
    lease: Any = Stale(epoch)
    made = Publisher(
        node.boundary,
        lease,
        reader=node.reader,
        nats=node.nats,
        database=node.database,
        lookout=node.lookout,
        signals=node.signals,
        settings=node.settings,
        quiet_for=quiet_for,
    )
    task = asyncio.create_task(made.run())
    try:
        yield made, lease
    finally:
        made.stop()
        await task


async def test_a_publisher_without_a_lease_publishes_nothing(settings: Settings) -> None:
    async with Node(settings, publishing=False) as node:
        await node.nats.wait_connected()
        async with publisher(node, 1) as (first, lease):
            await node.append(0)
            await eventually(node.published)
            lease.valid = False
            await node.append(1)
            first.wake()
            async with publisher(node, 2):
                await eventually(node.published)
            await assert_streamed_once_and_in_order(node)


async def test_a_publisher_rests_for_as_long_as_its_server_appends(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "_LEAST_REST", 600.0)
    monkeypatch.setattr(publisher_module, "_LONGEST_REST", 600.0)
    quiet, asked = 1.0, asyncio.Event()

    def quiet_for() -> float:
        asked.set()
        return quiet

    async with Node(settings, publishing=False) as node:
        await node.nats.wait_connected()
        async with publisher(node, 1, quiet_for) as (made, _):
            for number in range(3):
                await node.append(number)
                made.wake()
                await eventually(node.published)
            quiet = 0.0
            before = made.position
            asked.clear()
            await node.append(3)
            made.wake()
            for _ in range(20):
                await asyncio.wait_for(asked.wait(), 30)
                asked.clear()
            assert made.position == before
            await node.append(4)
            quiet = 1.0
            await eventually(node.published)
        await assert_streamed_once_and_in_order(node)


async def test_two_publishers_that_both_believe_in_their_lease(settings: Settings) -> None:
    """The worst case: the earlier one does not know that it lost the lease, and both publish at once."""
    async with Node(settings, publishing=False) as node:
        await node.nats.wait_connected()
        async with publisher(node, 1) as (first, _):
            await node.append(0)
            await eventually(node.published)
            async with publisher(node, 2) as (second, _):
                for number in range(200):
                    await node.append(number)
                    first.wake()
                    second.wake()
                    await asyncio.sleep(0)
                await assert_streamed_once_and_in_order(node)


@pytest.mark.parametrize("running", [True, False])
async def test_postgresql_restored_beside_a_surviving_stream(settings: Settings, running: bool) -> None:
    """The stream of the other history is made anew; who read too far is told, the others get the new history."""

    async def restore(node: Node) -> None:
        events, published = node.boundary.names.q_events, node.boundary.names.q_published
        async with node.database.admin.acquire() as connection, connection.transaction():
            await connection.execute(f"DELETE FROM {events} WHERE global_id >= 5")
            await connection.execute(f"UPDATE {published} SET transaction_id = 3, global_id = 2, event_count = 3")
            sequence = node.boundary.names.qualified(node.boundary.names.sequence)
            await connection.execute(f"SELECT setval('{sequence}', 4)")

    async with Node(settings) as node:
        for number in range(8):
            await node.append(number)
        await eventually(node.published)
        async with Subscriber(node) as subscriber:
            await subscriber.has(8)
            await subscriber.is_live()
            if not running:
                await node.publishers.stop()
            await restore(node)
            if running:
                await eventually(lambda: subscriber.failure)
        if running:
            await node.append(100)
            await assert_streamed_once_and_in_order(node, since=3)
    if not running:
        async with Node(settings) as node:
            await node.append(100)
            await node.append(101)
            await assert_streamed_once_and_in_order(node, since=3)
            async with Subscriber(node) as subscriber:
                await subscriber.has(7)
                assert subscriber.events == await node.stored()


async def test_a_copy_that_lacked_the_latest_events_takes_postgresql_s_place(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a replica does that was promoted too early; others append past the lost events before anybody looks."""
    for module in ("publisher", "subscription"):
        monkeypatch.setattr(f"orisun_server.delivery.{module}.CONFIRMED", 0.0)
    settings = make_settings(publisher_poll_interval=3600)
    silent = settings.model_copy(update={"pg_listen_enabled": False})
    async with Node(settings) as node, Node(silent, publishing=False) as other:
        for number in range(8):
            await node.append(number)
        await eventually(node.published)
        async with Subscriber(node) as subscriber:
            await subscriber.has(8)
            await subscriber.is_live()
            common = subscriber.events[4][0]
            await node.database.admin.execute(
                f"DELETE FROM {node.boundary.names.q_events} WHERE global_id > {common.prepare};"
                f"SELECT setval('{node.boundary.names.qualified(node.boundary.names.sequence)}', {common.prepare})"
            )
            for number in range(10):
                await other.append(number)
            await node.append(0)
            # it has seen what is not there any more, and must not miss what came instead
            failure = await eventually(lambda: subscriber.failure)
            assert isinstance(failure, OutOfRange)
        async with Subscriber(node, after=common) as again:
            await again.has(11)
            await node.append(1)
            await again.has(12)
            assert again.events == (await node.stored())[5:]


async def test_a_checkpoint_beyond_the_head(settings: Settings) -> None:
    async with Node(settings) as node:
        await node.append(0, 1)
        await eventually(node.published)
        await node.publishers.stop()
        await node.database.admin.execute(
            f"UPDATE {node.boundary.names.q_published} SET transaction_id = 90, global_id = 89, event_count = 90"
        )
    async with Node(settings) as node:
        await eventually(node.published)
        await node.append(2)
        await assert_streamed_once_and_in_order(node, since=2)
        assert (await node.checkpoint())[1] == 3


async def test_a_message_of_somebody_else_in_the_stream(node: Node) -> None:
    async with Subscriber(node) as subscriber:
        await node.append(0)
        await subscriber.has(1)
        await eventually(node.published)
        await node.nats.connection.jetstream.publish(f"orisun.events.{node.store}.{node.boundary.name}", b"hello")
        await node.append(1)
        await assert_streamed_once_and_in_order(node, since=1)
        # in the middle of a batch it may take the place of an event, and subscribers see the hole
        await node.nats.connection.jetstream.publish(f"orisun.events.{node.store}.{node.boundary.name}", b"hello")
        await node.append(2, 3, 4)
        await subscriber.has(5)
        await eventually(node.published)
        await node.append(5)
        await subscriber.has(6)
        assert subscriber.events == await node.stored()


async def test_a_stream_that_aged_out_goes_on(make_settings: MakeSettings) -> None:
    settings = make_settings(nats_event_stream_max_age=1)
    async with Node(settings) as node, Subscriber(node) as subscriber:
        stream = node.stream_of(node.boundary.name)
        await node.append(0)
        await eventually(node.published)

        async def aged_out() -> bool:
            return (await node.nats.connection.jetstream.stream_info(stream)).state.messages == 0

        await eventually(aged_out)
        await node.publishers.stop()
    async with Node(settings) as node, Subscriber(node) as subscriber:
        await node.append(1)
        await eventually(node.published)
        await subscriber.has(2)
        assert subscriber.events == await node.stored()


async def test_changed_limits_reach_the_stream(make_settings: MakeSettings) -> None:
    settings = make_settings()
    for changes in (
        {},
        {"nats_event_stream_max_msgs": 5},
        {"nats_event_stream_max_bytes": 100_000},
        {"nats_event_stream_max_age": 60.0},
        {"nats_event_stream_storage": "memory"},
    ):
        changed = settings.model_copy(update=changes)
        async with Node(changed) as node:
            await node.append(0)
            await eventually(node.published)
            config = (await node.nats.connection.jetstream.stream_info(node.stream_of(node.boundary.name))).config
            assert config.max_msgs == changed.nats_event_stream_max_msgs
            assert config.storage == changed.nats_event_stream_storage
            assert config.max_bytes == changed.nats_event_stream_max_bytes
            assert config.max_age == changed.nats_event_stream_max_age
    assert (settings.nats_event_stream_max_bytes, settings.nats_event_stream_max_age) == (536_870_912, 300)


async def test_all_streams_together_stay_under_their_limit(
    make_settings: MakeSettings, own_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orisun_server.delivery.publishers._TRIM_INTERVAL", 0.5)
    settings = make_settings("large", "small", nats_url=SecretStr(own_nats.url), nats_max_store=100_000)
    async with Node(settings) as node, Subscriber(node) as subscriber:
        small = node.catalog.get(settings.boundaries[1].name)
        await node.append(0, boundary=small, padding=1000)
        for number in range(400):
            await node.append(number, padding=1000)
        await subscriber.has(400)

        async def sizes() -> bool:
            infos = await node.nats.connection.jetstream.streams_info()
            return sum(info.state.bytes for info in infos) <= 105_000

        await eventually(sizes)
        info = await node.nats.connection.jetstream.stream_info(node.stream_of(small.name))
        assert info.state.messages == 1
        await node.append(400)
        await subscriber.has(401)
        assert subscriber.events == await node.stored()


@given(st.dictionaries(st.text(), st.integers(0, 100), max_size=8), st.integers(0, 300))
def test_the_largest_streams_come_down_to_one_level(sizes: dict[str, int], limit: int) -> None:
    cap = level(sizes, limit)
    if cap is None:
        assert sum(sizes.values()) <= limit
    else:
        total = sum(min(size, cap) for size in sizes.values())
        assert total <= limit < total + len(sizes) + 1


@pytest.mark.fault
async def test_a_cluster_of_three_whose_leader_moves(make_settings: MakeSettings, directory: Path) -> None:
    """Three copies of a stream; leaders step down and a server is killed while events are published."""
    ports = [free_port() for _ in range(3)]
    routes = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
    servers = [
        NatsServer(
            directory,
            arguments=[
                "-n",
                f"n{n}",
                "--cluster_name",
                "c",
                "--cluster",
                f"nats://127.0.0.1:{port}",
                "--routes",
                routes,
            ],
        )
        for n, port in enumerate(ports)
    ]
    async with contextlib.AsyncExitStack() as stack:
        for server in servers:
            stack.push_async_callback(server.kill)
            await server.start()
        url = SecretStr(",".join(server.url for server in servers))
        node = await stack.enter_async_context(Node(make_settings(nats_url=url, nats_event_stream_replicas=3)))
        await node.append(0)
        await eventually(node.published, timeout=30)
        subscriber = await stack.enter_async_context(Subscriber(node))
        stream = node.stream_of(node.boundary.name)

        async def copied() -> bool:
            with contextlib.suppress(*NATS_ERRORS):
                info = await node.nats.connection.jetstream.stream_info(stream)
                others = (info.cluster.replicas if info.cluster else None) or []
                return len(others) == 2 and all(other.current for other in others)
            return False

        await eventually(copied, message="three copies: a cluster that forms has room for one at first")

        async def step_down() -> None:
            with contextlib.suppress(Exception):
                await node.nats.connection.client.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", timeout=2)

        for number in range(1, 601):
            await node.append(number)
            if number % 150 == 0:
                await step_down()
        servers[0].signal(signal.SIGKILL)
        for number in range(601, 801):
            await node.append(number)
        await subscriber.has(801, timeout=40)
        assert subscriber.events == await node.stored()
        await eventually(node.published, timeout=40)

        async def read() -> Streamed | None:
            """NATS may give a consumer to the server that is gone, which then never answers; the next has more luck."""
            with contextlib.suppress(*NATS_ERRORS, TimeoutError):
                return await streamed(node)
            return None

        found = await eventually(read, timeout=60, message="a consumer on one of the two that are left")
        await assert_streamed_once_and_in_order(node, found=found)
