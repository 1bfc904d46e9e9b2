"""Pub/sub over a real nats-server: who is connected receives, nobody else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest
import structlog

from orisun_api import eventstore_pb2
from orisun_server.delivery import pubsub as limits
from orisun_server.delivery.nats import Nats
from orisun_server.delivery.pubsub import PubSub
from orisun_server.errors import InvalidArgument, OrisunError, ResourceExhausted, Unavailable
from tests.harness import eventually
from tests.integration.nodes import nats_server


@pytest.fixture
async def nats(nats_url: str) -> AsyncIterator[Nats]:
    nats = Nats([nats_url])
    await nats.start()
    await nats.wait_connected()
    yield nats
    await nats.stop()


@pytest.fixture
def pubsub(nats: Nats) -> PubSub:
    return PubSub(nats)


class Receiver:
    """Keeps what a subscription receives; ``async with`` returns once it is subscribed."""

    def __init__(self, pubsub: PubSub, subject: str, consumer: str) -> None:
        self._pubsub, self._messages = pubsub, pubsub.subscribe(subject, consumer)
        self.messages: list[eventstore_pb2.PubSubMessage] = []
        self.failure: OrisunError | None = None

    async def _take(self, messages: AsyncGenerator[bytes]) -> None:
        try:
            async with contextlib.aclosing(messages):
                async for raw in messages:
                    self.messages.append(eventstore_pb2.PubSubMessage.FromString(raw))
        except OrisunError as failure:
            self.failure = failure

    @property
    def data(self) -> list[str]:
        return [message.data for message in self.messages]

    async def __aenter__(self) -> Receiver:
        before = self._pubsub.subscribed
        self.task = asyncio.create_task(self._take(self._messages))
        await eventually(lambda: self._pubsub.subscribed > before)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


async def test_names_share_and_different_names_each_receive_all(pubsub: PubSub) -> None:
    async with (
        Receiver(pubsub, "orders.eu", "a b*") as one,
        Receiver(pubsub, "orders.eu", "a b*") as same,
        Receiver(pubsub, "orders.eu", "ab*") as other,
        Receiver(pubsub, "orders.us", "a b*") as elsewhere,
    ):
        for number in range(40):
            await pubsub.publish("orders.eu", str(number), "{}")
        await eventually(lambda: len(other.messages) == 40)
        await eventually(lambda: len(one.messages) + len(same.messages) == 40)
        assert other.data == [str(number) for number in range(40)]
        assert not elsewhere.messages
        message = other.messages[0]
        assert (message.subject, message.metadata) == ("orders.eu", "{}")
        assert len({message.id for message in other.messages}) == 40


async def test_who_is_not_connected_misses_it(pubsub: PubSub) -> None:
    await pubsub.publish("late", "1", "")
    async with Receiver(pubsub, "late", "a") as receiver:
        await pubsub.publish("late", "2", "")
        await eventually(lambda: receiver.data == ["2"])


@pytest.mark.parametrize(
    "subject", ["", "a.*", "a.>", "a b", "a\tb", "a\r\nb", "$JS.API", "a..b", ".a", "a.", "x" * 256, "a\0", "a\u2028b"]
)
async def test_subjects_that_cannot_be(pubsub: PubSub, subject: str) -> None:
    with pytest.raises(InvalidArgument):
        await pubsub.publish(subject, "", "")
    with pytest.raises(InvalidArgument):
        await anext(pubsub.subscribe(subject, "a"))


async def test_event_subjects_are_out_of_reach(pubsub: PubSub, nats: Nats) -> None:
    seen: list[str] = []

    async def receive(message: object) -> None:
        seen.append(getattr(message, "subject", ""))

    client = nats.connection.client
    await client.subscribe("orisun.events.>", cb=receive)
    await pubsub.publish("orisun.events.orders", "x", "")
    # what came before it has been received by then
    await client.publish("orisun.events.last", b"")
    await eventually(lambda: seen)
    assert seen == ["orisun.events.last"]


@pytest.mark.parametrize("name", ["", "x" * 256])
async def test_names_that_cannot_be(pubsub: PubSub, name: str) -> None:
    with pytest.raises(InvalidArgument):
        await anext(pubsub.subscribe("a", name))


async def test_a_message_larger_than_nats_carries(pubsub: PubSub) -> None:
    with pytest.raises(InvalidArgument, match="1048576"):
        await pubsub.publish("a", "x" * 1_100_000, "")


async def test_who_leaves_too_much_unread_is_told(pubsub: PubSub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_MESSAGES", 5)
    stream = pubsub.subscribe("slow", "a")
    first = asyncio.create_task(anext(stream))
    await eventually(lambda: pubsub.subscribed == 1)
    for number in range(20):
        await pubsub.publish("slow", str(number), "")
    await first
    unread = [raw async for raw in _until(ResourceExhausted, stream)]
    assert len(unread) == 5


async def _until(failure: type[OrisunError], stream: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    with contextlib.suppress(failure):
        async for raw in stream:
            yield raw


@pytest.mark.fault
async def test_without_nats_it_is_unavailable_and_comes_back(directory: Path) -> None:
    async with nats_server(directory) as server:
        nats = Nats([server.url])
        await nats.start()
        await nats.wait_connected()
        pubsub = PubSub(nats)
        async with Receiver(pubsub, "a", "a") as receiver:
            await server.kill()
            await asyncio.wait([receiver.task], timeout=30)
            assert isinstance(receiver.failure, Unavailable)
        with pytest.raises(Unavailable):
            await pubsub.publish("a", "1", "")
        with pytest.raises(Unavailable):
            await anext(pubsub.subscribe("a", "a"))
        await server.start()
        await nats.wait_connected()
        async with Receiver(pubsub, "a", "a") as receiver:
            await pubsub.publish("a", "2", "")
            await eventually(lambda: receiver.data == ["2"])
        await nats.stop()


@pytest.mark.fault
async def test_a_nats_that_lets_no_event_through_is_not_used_and_the_log_says_why(directory: Path) -> None:
    configuration = directory / "small.conf"
    configuration.write_text("max_payload: 8191")
    with structlog.testing.capture_logs() as logs:
        async with nats_server(directory, "-c", str(configuration)) as server:
            nats = Nats([server.url])
            await nats.start()
            await eventually(lambda: any(entry["log_level"] == "error" for entry in logs), message="a word in the log")
            assert not nats.connected
            # somebody mends it
            await server.kill()
            configuration.write_text("max_payload: 8192")
            await server.start()
            await nats.wait_connected()
            await nats.stop()
    (said,) = (entry for entry in logs if entry["log_level"] == "error")
    assert said["reason"] == "its max_payload is 8191 bytes; set it to 8192 at least"


async def test_a_server_that_stops_ends_its_streams(pubsub: PubSub) -> None:
    async with Receiver(pubsub, "a", "a") as receiver:
        await pubsub.stop()
        await asyncio.wait([receiver.task], timeout=30)
        assert isinstance(receiver.failure, Unavailable)
    assert pubsub.subscribed == 0
