"""The live tail on a real nats-server: what makes it start over, and that its inboxes are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from nats.js import api

from orisun_server.delivery import live_tail as module
from orisun_server.delivery.inbox import Inbox
from orisun_server.delivery.live_tail import LiveTail
from orisun_server.settings import Settings
from orisun_server.storage.catalog import Boundary
from tests.harness import eventually
from tests.integration.nodes import Node


@pytest.fixture
async def node(settings: Settings) -> AsyncIterator[Node]:
    async with Node(settings) as node:
        await node.append(0)
        await eventually(node.published)
        yield node


@pytest.fixture
async def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
async def tail(node: Node, inbox: Inbox) -> LiveTail:
    tail = node.tails.attach(node.boundary, inbox)
    await eventually(lambda: tail.live)
    inbox.open()
    return tail


def stream(node: Node) -> str:
    return node.stream_of(node.boundary.name)


async def consumers(node: Node) -> list[api.ConsumerInfo]:
    return await node.nats.connection.jetstream.consumers_info(stream(node))


async def test_messages_carry_position_previous_and_body(node: Node, tail: LiveTail, inbox: Inbox) -> None:
    await node.append(1)
    await node.append(2)
    first = await eventually(inbox.take)
    second = await eventually(inbox.take)
    stored = [position for position, _ in await node.stored()]
    assert (first.previous, first.position, second.previous, second.position) == (*stored[:2], *stored[1:])
    assert second.content()[0] == "Type2"


async def test_the_consumer_is_light_and_starts_at_new(node: Node, tail: LiveTail) -> None:
    (consumer,) = await consumers(node)
    assert consumer.config.deliver_policy == api.DeliverPolicy.NEW
    assert consumer.config.ack_policy == api.AckPolicy.NONE
    assert consumer.config.mem_storage
    assert not consumer.config.durable_name


async def test_a_consumer_that_vanished_is_made_anew(node: Node, tail: LiveTail, inbox: Inbox) -> None:
    (consumer,) = await consumers(node)
    await node.nats.connection.jetstream.delete_consumer(stream(node), consumer.name)
    await eventually(lambda: not inbox.intact)
    await eventually(lambda: tail.live)
    inbox.open()
    await node.append(1)
    await eventually(inbox.take)


async def test_a_stream_that_was_made_anew_is_followed(node: Node, tail: LiveTail, inbox: Inbox) -> None:
    await node.nats.connection.jetstream.delete_stream(stream(node))
    await node.append(1)
    await eventually(lambda: not inbox.intact)
    await eventually(lambda: tail.live)
    inbox.open()
    await node.append(2)
    await eventually(inbox.take)


async def test_messages_lost_on_the_way_are_noticed_by_a_heartbeat(
    node: Node, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py drops what it cannot queue; here everything but the smallest message."""
    monkeypatch.setattr(module, "_PENDING_BYTES", 1000)
    tail = node.tails.attach(node.boundary, inbox)
    await eventually(lambda: tail.live)
    inbox.open()
    await node.append(1, padding=5000)
    await eventually(node.published)
    await eventually(lambda: not inbox.intact)
    assert tail.live


async def test_a_tail_outlives_its_subscription_for_a_moment(
    node: Node, tail: LiveTail, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGER", 0.2)
    node.tails.detach(tail, inbox)
    assert node.tails.attach(node.boundary, inbox) is tail
    node.tails.detach(tail, inbox)
    await eventually(lambda: not node.tails.of(None))
    await eventually(tail._task.done)
    assert await consumers(node) == []
    again = node.tails.attach(node.boundary, inbox)
    assert again is not tail
    await eventually(lambda: again.live)


async def test_flow_control_lets_a_burst_through(node: Node, tail: LiveTail, inbox: Inbox) -> None:
    received = 0

    async def take() -> None:
        nonlocal received
        while received < 5000:
            await inbox.wait()
            while inbox.take() is not None:
                received += 1

    taking = asyncio.create_task(take())
    for _ in range(5):
        await node.append(*range(1000), padding=500)
    await asyncio.wait_for(taking, 60)
    assert inbox.intact


async def test_a_boundary_made_anew_elsewhere_has_a_tail_of_its_own(node: Node, tail: LiveTail) -> None:
    elsewhere = Boundary.at(node.boundary.name, "elsewhere")
    other = node.tails.attach(elsewhere, Inbox())
    assert other is not tail
    assert other.boundary == elsewhere
    await eventually(lambda: tail not in node.lookout._watchers)
    assert node.tails.of(node.boundary.name) == [other]
