"""CatchUpSubscribeToEvents over the wire, on both transports: every event once and in order, whoever is slow."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import grpc
import psutil
import pytest

from orisun_api import admin_pb2
from orisun_api import eventstore_pb2 as pb
from orisun_server.app import App
from orisun_server.settings import Settings
from tests.harness import ADMIN, Connection, ServerProcess, eventually, is_quick

Code = grpc.StatusCode
Criteria = Sequence[Mapping[str, str]]
MIB = 1024 * 1024


@pytest.fixture(scope="module", params=["grpcio", "native"])
def settings(make_settings: Callable[..., Settings], request: pytest.FixtureRequest) -> Settings:
    return make_settings(grpc_transport=request.param)


@pytest.fixture(scope="module")
async def server(settings: Settings) -> AsyncIterator[Connection]:
    """One server for the tests of a transport."""
    app = App(settings)
    await app.start()
    connection = Connection(app.address)
    yield connection
    await connection.close()
    await app.stop()


class Stored(NamedTuple):
    """An event that was read or delivered."""

    position: tuple[int, int]
    event_id: str
    event_type: str
    data: str


def stored(event: pb.Event) -> Stored:
    place = event.position
    return Stored((place.commit_position, place.prepare_position), event.event_id, event.event_type, event.data)


def query(criteria: Criteria) -> pb.Query:
    return pb.Query(criteria=[
        pb.Criterion(tags=[pb.Tag(key=key, value=value) for key, value in tags.items()]) for tags in criteria
    ])  # fmt: skip


class Boundary:
    """A boundary as a client sees it."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection, self.name = connection, name

    async def append(self, *data: Mapping[str, Any], event_type: str = "Happened") -> tuple[int, int]:
        """One call with an event for each object."""
        events = [
            pb.EventToSave(event_id=secrets.token_hex(12), event_type=event_type, data=json.dumps(item))
            for item in data
        ]
        request = pb.SaveEventsRequest(boundary=self.name, events=events)
        result = await self.connection.events.SaveEvents(request, metadata=ADMIN, timeout=30)
        return result.log_position.commit_position, result.log_position.prepare_position

    async def events(self, criteria: Criteria = (), after: tuple[int, int] = (-1, -1)) -> list[Stored]:
        """Everything that matches, page by page."""
        found: list[Stored] = []
        while True:
            request = pb.GetEventsRequest(
                boundary=self.name, query=query(criteria), count=500, after_position=position(after)
            )
            page = (await self.connection.events.GetEvents(request, metadata=ADMIN, timeout=30)).events
            if not page:
                return found
            found += map(stored, page)
            after = found[-1].position

    def subscribe(self, **arguments: Any) -> Subscriber:
        return Subscriber(self.connection, self.name, **arguments)


def position(place: tuple[int, int] | None) -> pb.Position | None:
    return None if place is None else pb.Position(commit_position=place[0], prepare_position=place[1])


class Subscriber:
    """Takes everything that one call brings; ``async with`` opens and cancels it."""

    def __init__(
        self,
        connection: Connection,
        boundary: str,
        *,
        name: str | None = None,
        after: tuple[int, int] | None = None,
        criteria: Criteria = (),
        timeout: float | None = None,
    ) -> None:
        self._connection, self._timeout = connection, timeout
        self._request = pb.CatchUpSubscribeToEventStoreRequest(
            boundary=boundary,
            subscriber_name=name or secrets.token_hex(6),
            after_position=position(after),
            query=query(criteria),
        )
        self.events: list[Stored] = []
        #: When each came, by time.monotonic().
        self.times: list[float] = []
        self.ended: asyncio.Task[Code] | None = None

    async def __aenter__(self) -> Subscriber:
        self.open()
        return self

    def open(self) -> None:
        self._call = self._connection.events.CatchUpSubscribeToEvents(
            self._request, metadata=ADMIN, timeout=self._timeout
        )
        self.ended = asyncio.create_task(self._take())

    async def _take(self) -> Code:
        try:
            async for event in self._call:
                self.times.append(time.monotonic())
                self.events.append(stored(event))
        except grpc.aio.AioRpcError as error:
            return error.code()
        except asyncio.CancelledError:
            return Code.CANCELLED
        return Code.OK

    async def __aexit__(self, *_: object) -> None:
        self.cancel()
        assert self.ended is not None
        await self.ended

    def cancel(self) -> None:
        self._call.cancel()

    async def has(self, count: int, timeout: float = 30) -> list[Stored]:
        """Waits for that many events, and returns all that came."""

        def reached() -> bool:
            assert self.ended is not None
            assert not self.ended.done(), self.ended.result()
            return len(self.events) >= count

        await eventually(reached, timeout, message=f"{count} events, {len(self.events)} so far")
        return self.events

    async def code(self, timeout: float = 30) -> Code:
        """How the call ended."""
        assert self.ended is not None
        return await asyncio.wait_for(asyncio.shield(self.ended), timeout)


@pytest.fixture
async def boundary(server: Connection) -> Boundary:
    """A fresh boundary of the running server."""
    return await create(server)


async def create(connection: Connection) -> Boundary:
    name = "b" + secrets.token_hex(6)
    placement = admin_pb2.BoundaryPlacementInput(backend="postgres", namespace="subscriptions")
    request = admin_pb2.CreateBoundaryRequest(name=name, placement=placement)
    created = (await connection.admin.CreateBoundary(request, metadata=ADMIN)).boundary
    assert created.status == admin_pb2.BOUNDARY_LIFECYCLE_STATUS_ACTIVE
    return Boundary(connection, name)


async def test_what_is_stored_then_what_is_new_while_writers_append(boundary: Boundary) -> None:
    """Subscriptions that open at any moment, from any position, each with criteria of its own."""
    chance = random.Random(1)
    ends, written = time.monotonic() + 1.5, 0
    choices: list[Criteria] = [(), [{"kind": "1"}], [{"kind": "0", "big": "true"}, {"eventType": "B"}]]

    async def write(seed: int) -> None:
        nonlocal written
        own = random.Random(seed)
        # a busy machine takes longer until there is something to compare
        while time.monotonic() < ends or written < 150:
            data = [{"kind": own.randrange(3), "big": own.random() < 0.5} for _ in range(own.randint(1, 4))]
            await boundary.append(*data, event_type=own.choice("AB"))
            written += len(data)

    writers = [asyncio.create_task(write(seed)) for seed in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        opened: list[tuple[tuple[int, int] | None, Criteria, Subscriber]] = []
        for number in range(12):
            await asyncio.sleep(chance.random() / 6)
            sofar = [event.position for event in await boundary.events()]
            after = chance.choice(sofar) if sofar and number % 3 else None
            criteria = choices[number % 3]
            subscriber = boundary.subscribe(after=after, criteria=criteria)
            opened.append((after, criteria, await stack.enter_async_context(subscriber)))
        await asyncio.gather(*writers)
        assert len(await boundary.events()) > 100
        for after, criteria, subscriber in opened:
            wanted = await boundary.events(criteria, after or (-1, -1))
            assert await subscriber.has(len(wanted)) == wanted
        await boundary.append({"kind": 1}, event_type="B")  # the first of what comes after: nothing else came before
        for after, criteria, subscriber in opened:
            wanted = await boundary.events(criteria, after or (-1, -1))
            assert await subscriber.has(len(wanted)) == wanted


async def test_live_events_match_as_stored_ones_do(boundary: Boundary) -> None:
    """Numbers of a million and more, small decimals, objects, arrays, null, text that looks like them."""
    values: list[Any] = [
        7, 1.5, 1_000_000, 10**22, 0.00001, True, None, "", "null", "true", "7", 'é\n"', {"a": 1, "bb": [1, "x"]},
        [1, "a"], [], -0.0, 1e300,
    ]  # fmt: skip
    printed = [
        "7", "1.5", "1000000", "10000000000000000000000", "0.00001", "true", "null", "", 'é\n"',
        '{"a": 1, "bb": [1, "x"]}', '[1, "a"]', "[]", "0.0", "-0.0", "1e22", "1" + "0" * 300,
    ]  # fmt: skip
    async with contextlib.AsyncExitStack() as stack:
        subscribers = [
            await stack.enter_async_context(boundary.subscribe(criteria=[{"value": text}])) for text in printed
        ]
        everything = await stack.enter_async_context(boundary.subscribe())
        await boundary.append({"value": "the first"})
        await everything.has(1)
        for value in values:
            await boundary.append({"value": value, "other": "7"})
        await everything.has(1 + len(values))
        matched = 0
        for text, subscriber in zip(printed, subscribers, strict=True):
            wanted = await boundary.events([{"value": text}])
            assert await subscriber.has(len(wanted)) == wanted, text
            matched += len(wanted)
        assert matched == len(values) - 1  # null alone matches nothing


async def test_live_delivery_is_quick(boundary: Boundary) -> None:
    async with boundary.subscribe() as subscriber:
        await boundary.append({})
        await subscriber.has(1)
        await asyncio.sleep(0.2)
        delays = []
        for number in range(40):
            await boundary.append({})
            answered = time.monotonic()
            await subscriber.has(number + 2)
            delays.append(subscriber.times[-1] - answered)
        assert sorted(delays)[20] < 0.1


@pytest.mark.parametrize("after", [None, (0, 0), (-1, -1), (-5, 3)])
async def test_positions_that_mean_the_beginning(boundary: Boundary, after: tuple[int, int] | None) -> None:
    async with boundary.subscribe(after=after) as early:
        await boundary.append({"n": 0}, {"n": 1})
        async with boundary.subscribe(after=after) as late:
            assert await late.has(2) == await early.has(2) == await boundary.events()


@pytest.mark.parametrize("stored", [0, 2])
async def test_a_position_beyond_the_head_is_out_of_range(boundary: Boundary, stored: int) -> None:
    head = await boundary.append(*({},) * stored) if stored else (0, 0)
    for after in ((head[0], head[1] + 1), (head[0] + 1, head[1]), (2**62, 2**62)):
        async with boundary.subscribe(after=after) as subscriber:
            assert await subscriber.code() is Code.OUT_OF_RANGE
    if stored:
        async with boundary.subscribe(after=head) as at_head:
            await boundary.append({"n": 1})
            assert [event.data for event in await at_head.has(1)] == ['{"n": 1}']


async def test_a_cancelled_call_frees_its_name_at_once(boundary: Boundary) -> None:
    await boundary.append({})
    took = []
    for _ in range(6):
        began = time.monotonic()
        await _opens(boundary, "one")
        took.append(time.monotonic() - began)
    assert sorted(took)[4] < 1


async def test_a_deadline_frees_the_name(boundary: Boundary) -> None:
    await boundary.append({})

    async def frees() -> float:
        async with boundary.subscribe(name="one", timeout=0.7) as first:
            assert await first.code() is Code.DEADLINE_EXCEEDED
            began = time.monotonic()
        await _opens(boundary, "one")
        return time.monotonic() - began if first.events else 60.0  # it was open, unless the deadline came before

    await is_quick(frees, 1)


async def test_a_closed_connection_frees_the_name(boundary: Boundary) -> None:
    await boundary.append({})

    async def frees() -> float:
        connection = Connection(boundary.connection.address)
        subscriber = Subscriber(connection, boundary.name, name="one")
        subscriber.open()
        await subscriber.has(1)
        await connection.close()
        began = time.monotonic()
        await _opens(boundary, "one")
        return time.monotonic() - began

    await is_quick(frees, 1)


async def _opens(boundary: Boundary, name: str) -> None:
    """Waits until a subscription of this name opens, and closes it."""

    async def opens() -> bool:
        async with boundary.subscribe(name=name) as subscriber:
            assert subscriber.ended is not None
            await eventually(lambda: subscriber.events or subscriber.ended.done())  # type: ignore[union-attr]
            if not subscriber.events:
                assert subscriber.ended.result() is Code.ALREADY_EXISTS
            return bool(subscriber.events)

    await eventually(opens, message="the name to be free")


async def test_a_second_subscriber_is_refused_on_every_server(boundary: Boundary, settings: Settings) -> None:
    app = App(settings)
    await app.start()
    other = Connection(app.address)
    try:
        await boundary.append({})
        elsewhere = await create(other)
        for name in ("plain", "é x*>.$ \n\"'", "x" * 255):
            async with boundary.subscribe(name=name) as first:
                await first.has(1)
                for connection in (boundary.connection, other):
                    async with Subscriber(connection, boundary.name, name=name) as second:
                        assert await second.code() is Code.ALREADY_EXISTS
                # the name is of one boundary alone
                async with elsewhere.subscribe(name=name) as third:
                    await elsewhere.append({})
                    await third.has(1)
                assert first.ended is not None
                assert not first.ended.done()
            await _opens(Boundary(other, boundary.name), name)
    finally:
        await other.close()
        await app.stop()


async def test_events_larger_than_a_message_of_nats(boundary: Boundary) -> None:
    sizes = [10, 1_048_000, 1_048_576, 20, 1_100_000, 6_000_000, 30]
    async with boundary.subscribe() as everything, boundary.subscribe(criteria=[{"big": "true"}]) as big:
        await boundary.append({"n": -1})
        await everything.has(1)
        for number, size in enumerate(sizes):
            await boundary.append({"n": number, "big": size > 100, "pad": "x" * size})
        assert await everything.has(1 + len(sizes)) == await boundary.events()
        assert await big.has(4) == await boundary.events([{"big": "true"}])


async def test_fifty_subscribers_of_one_boundary(boundary: Boundary) -> None:
    async with contextlib.AsyncExitStack() as stack:
        subscribers = [
            await stack.enter_async_context(boundary.subscribe(criteria=[{"n": str(number)}, {"all": "true"}]))
            for number in range(50)
        ]
        await boundary.append({"all": True})
        for subscriber in subscribers:
            await subscriber.has(1)
        for number in range(50):
            await boundary.append({"n": number}, {"all": True})
        everything = await boundary.events([{"all": "true"}])
        for number, subscriber in enumerate(subscribers):
            wanted = await boundary.events([{"n": str(number)}, {"all": "true"}])
            assert len(wanted) == len(everything) + 1
            assert await subscriber.has(52) == wanted


class Slow:
    """A client that opens a subscription and does not read."""

    def __init__(self, address: str, boundary: str) -> None:
        # without probes of the bandwidth, the client's window stays at 64 KiB
        options = [("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
        self._connection = Connection(address)
        self._channel = grpc.aio.insecure_channel(address, options=options)
        method = "/orisun.EventStore/CatchUpSubscribeToEvents"
        open_stream: Any = self._channel.unary_stream(
            method, pb.CatchUpSubscribeToEventStoreRequest.SerializeToString, pb.Event.FromString
        )
        self.call = open_stream(
            pb.CatchUpSubscribeToEventStoreRequest(boundary=boundary, subscriber_name=secrets.token_hex(6)),
            metadata=ADMIN,
        )

    async def __aenter__(self) -> Slow:
        await self.call.read()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        await self._channel.close()
        await self._connection.close()


@pytest.mark.parametrize("transport", ["grpcio", "native"])
async def test_a_slow_client_stalls_alone(make_settings: Callable[..., Settings], transport: str) -> None:
    """Its events wait in PostgreSQL, not in the server's memory, and it gets all of them when it reads again."""
    settings = make_settings(grpc_transport=transport)
    async with ServerProcess(settings) as process, contextlib.AsyncExitStack() as stack:
        boundary = Boundary(process.connection, settings.boundaries[0].name)
        memory = psutil.Process(process.pid).memory_info
        fast = await stack.enter_async_context(boundary.subscribe())
        await boundary.append({"n": -1})
        slow = [await stack.enter_async_context(Slow(process.address, boundary.name)) for _ in range(6)]
        for number in range(20):  # buffers of the server and of the clients fill
            await boundary.append(*({"n": number, "pad": "x" * 10_000},) * 20)
        await fast.has(1 + 400)
        before = memory().rss
        for number in range(60):
            await boundary.append(*({"n": number, "pad": "x" * 50_000},) * 20)
        await fast.has(1 + 400 + 1200)
        grown = memory().rss - before
        assert grown < 45 * MIB, f"{grown / MIB:.0f} MiB for 6 slow clients that have 60 MB each to come"

        async def delivered() -> float:
            count, began = len(fast.events), time.monotonic()
            await boundary.append({"n": 0})
            await fast.has(count + 1)
            return time.monotonic() - began

        await is_quick(delivered, 1)
        wanted = await boundary.events()
        for client in slow[:1]:
            got = [wanted[0], *[stored(await client.call.read()) for _ in wanted[1:]]]
            assert got == wanted
