"""Servers that are killed, stopped and restarted under a client: nothing is lost, nothing comes twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

import orisun
from orisun import NewEvent, where
from orisun_server.settings import Settings
from tests.harness import ServerProcess, eventually

pytestmark = pytest.mark.fault

PATIENT = orisun.RetryPolicy(attempts=1_000, first=0.05, longest=0.5)


class Network:
    """A port that passes bytes on to another one, and whose connections can be cut. Use as ``async with``."""

    def __init__(self, to: int) -> None:
        self._to = to
        #: Whether bytes are taken and go nowhere.
        self.frozen = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Drop every connection, without a word."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to)
        for source, sink in ((reader, to_writer), (to_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        self._writers.add(sink)
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if not self.frozen:
                    sink.write(data)
                    await sink.drain()
        sink.transport.abort()
        self._writers.discard(sink)

    async def __aenter__(self) -> Network:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def collect(subscription: orisun.Subscription, into: list[int]) -> None:
    async for event in subscription:
        into.append(event.data["number"])


async def test_a_subscription_and_appends_outlive_a_killed_server(
    settings: Settings, server_process: ServerProcess, make_client: Callable[..., orisun.Client]
) -> None:
    orders = make_client(server_process.address, retry=PATIENT, timeout=60).boundary(settings.boundaries[0].name)
    came: list[int] = []
    appended = 0
    both = asyncio.Event()

    async def append() -> None:
        nonlocal appended
        while appended < 60 or not both.is_set():
            # the same objects again after a failure: the client repeats the call by itself
            await orders.append(
                [NewEvent("Counted", {"number": appended}), NewEvent("Noise", {"number": -1})],
            )
            appended += 1

    async with orders.subscribe("counter", where("Counted")) as subscription:
        reading = asyncio.ensure_future(collect(subscription, came))
        appending = asyncio.ensure_future(append())
        for _ in range(2):
            # the subscription is there again too: what ends before it began is no reconnection
            wanted = len(came) + 10
            await eventually(lambda wanted=wanted: len(came) >= wanted, 30)  # type: ignore[misc]
            await server_process.kill()
            await server_process.start()
        both.set()
        await asyncio.wait_for(appending, 60)
        await orders.append([NewEvent("Counted", {"number": appended})])
        await eventually(lambda: len(came) > appended, 30, message="all events")
        assert came == list(range(appended + 1))
        assert subscription.reconnects >= 2
        reading.cancel()
    # every append is stored once, whatever became of its first attempt
    assert [event.data["number"] async for event in orders.read(where("Counted"))] == came


async def test_a_subscription_goes_on_after_an_orderly_stop(
    settings: Settings, server_process: ServerProcess, make_client: Callable[..., orisun.Client]
) -> None:
    orders = make_client(server_process.address, retry=PATIENT).boundary(settings.boundaries[0].name)
    async with orders.subscribe("counter") as subscription:
        await orders.append([NewEvent("Counted", {"number": 0})])
        assert (await anext(subscription)).data == {"number": 0}
        await server_process.stop()
        waiting = asyncio.ensure_future(anext(subscription))
        await server_process.start()
        await orders.append([NewEvent("Counted", {"number": 1})])
        assert (await asyncio.wait_for(waiting, 30)).data == {"number": 1}


async def test_a_subscription_moves_on_while_its_name_is_still_held_for_a_dead_server(
    settings: Settings, make_client: Callable[..., orisun.Client], caplog: pytest.LogCaptureFixture
) -> None:
    # the second server knows of the first one's death only after a while, and refuses the name until then
    second = ServerProcess(settings)
    async with contextlib.AsyncExitStack() as servers:
        first = await servers.enter_async_context(ServerProcess(settings))
        name = settings.boundaries[0].name
        orders = make_client([first.address, second.address], retry=PATIENT).boundary(name)
        async with orders.subscribe("counter") as subscription:
            # only now, so that the subscription is at the first one
            await servers.enter_async_context(second)
            other = make_client(second.address).boundary(name)
            await other.append([NewEvent("Counted", {"number": 0})])
            assert (await anext(subscription)).data == {"number": 0}
            await first.kill()
            with pytest.raises(orisun.SubscriberInUse):  # for others the name is taken as before
                async with other.subscribe("counter") as usurper:
                    await anext(usurper)
            await other.append([NewEvent("Counted", {"number": 1})])
            assert (await asyncio.wait_for(anext(subscription), 40)).data == {"number": 1}
            assert subscription.reconnects == 1  # the refusals in between do not count
    assert 'subscription "counter" of boundary' in caplog.text
    assert "was lost and is opened again" in caplog.text


async def test_a_connection_that_is_dead_without_a_word_is_noticed(
    settings: Settings, server_process: ServerProcess, make_client: Callable[..., orisun.Client],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    async with Network(server_process.port) as network:
        orders = make_client(f"127.0.0.1:{network.port}", keepalive=5).boundary(settings.boundaries[0].name)
        async with orders.subscribe("counter") as subscription:
            await orders.append([NewEvent("Counted", {"number": number}) for number in range(20)])
            assert (await anext(subscription)).data == {"number": 0}
            network.frozen = True
            with pytest.raises(orisun.DeadlineExceeded):
                await orders.append([NewEvent("Lost")], timeout=0.1)
            # the probe and its answer: 5 seconds each at most
            await eventually(lambda: "was lost" in caplog.text, 20)


async def test_a_connection_that_is_cut_again_and_again(
    settings: Settings, server_process: ServerProcess, make_client: Callable[..., orisun.Client]
) -> None:
    async with Network(server_process.port) as network:
        direct = make_client(server_process.address).boundary(settings.boundaries[0].name)
        orders = make_client(f"127.0.0.1:{network.port}", retry=PATIENT).boundary(direct.name)
        came: list[int] = []
        async with orders.subscribe("counter") as subscription:
            reading = asyncio.ensure_future(collect(subscription, came))
            for number in range(40):
                await direct.append([NewEvent("Counted", {"number": number})])
                if number % 10 == 5:
                    network.cut()
            await eventually(lambda: len(came) >= 40, 30)
            assert came == list(range(40))
            reading.cancel()


async def test_a_slow_reader_holds_a_bounded_number_of_events(
    settings: Settings, server_process: ServerProcess, make_client: Callable[..., orisun.Client]
) -> None:
    from orisun.streaming import BUFFER

    orders = make_client(server_process.address).boundary(settings.boundaries[0].name)
    await orders.append([NewEvent("Counted", {"number": number}) for number in range(3 * BUFFER)])
    async with orders.subscribe("slow") as subscription:
        # it has stopped reading, and one event less is no reason to go on
        await eventually(lambda: len(subscription._items) >= BUFFER and not subscription._drained.is_set())
        assert (await anext(subscription)).data["number"] == 0
        assert not subscription._drained.is_set()
        assert len(subscription._items) < BUFFER + 1
        rest = [(await anext(subscription)).data["number"] for _ in range(3 * BUFFER - 1)]
        assert rest == list(range(1, 3 * BUFFER))
