"""Clients as users write them: they repeat what got no answer with the same ids, and resume where they were."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orisun_api import eventstore_pb2 as pb
from orisun_api import eventstore_pb2_grpc
from orisun_server.core.position import NOTHING, Position
from orisun_server.settings import Settings
from tests.faults.checker import Attempt, History, Stored, Tags
from tests.harness import ADMIN, ServerProcess, eventually

Code = grpc.StatusCode
#: There is no answer, or it was lost: repeat with the same ids. A client's patience ends with the second.
UNANSWERED = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})

#: Another transport than native, where a test does not take both:
#: ORISUN_TEST_TRANSPORT=grpcio make test ARGS=tests/faults
TRANSPORT = {"ORISUN_GRPC_TRANSPORT": os.environ.get("ORISUN_TEST_TRANSPORT", "")}

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    # servers die here all the time: look again soon, and notice one that was stopped
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
]
_ACTUAL = re.compile(r"Actual \((-?\d+), (-?\d+)\)$")


class Conflict(Exception):
    """The context has changed; ``actual`` is what the server says its latest position is."""

    def __init__(self, actual: Position) -> None:
        self.actual = actual
        super().__init__(str(actual))


class Endpoint:
    """One server, as a client knows it: an address that may answer again later."""

    def __init__(self, address: str, metadata: Sequence[tuple[str, str]] = ADMIN) -> None:
        self.address, self._metadata = address, metadata
        self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        # Any: the generated stubs are typed for synchronous channels
        self.events: Any = eventstore_pb2_grpc.EventStoreStub(self.channel)
        self._health: Any = health_pb2_grpc.HealthStub(self.channel)

    async def health(self) -> str:
        """SERVING, NOT_SERVING or, without an answer, the code."""
        try:
            answer = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    async def node_id(self) -> str:
        answer = await self.events.GetServerInfo(
            pb.GetServerInfoRequest(), metadata=self._metadata, timeout=10, wait_for_ready=True
        )
        return str(answer.node_id)


class Client:
    """Calls on any of several servers, on one boundary; ``errors`` counts every failed try by its code."""

    def __init__(
        self, boundary: str, *servers: ServerProcess | str, metadata: Sequence[tuple[str, str]] = ADMIN
    ) -> None:
        self.boundary, self.metadata = boundary, metadata
        self.history = History()
        self.errors: Counter[Code] = Counter()
        self.endpoints = [Endpoint(s if isinstance(s, str) else s.address, metadata) for s in servers]

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(endpoint.channel.close() for endpoint in self.endpoints))

    async def call(
        self, method: str, request: Any, *, first: int = 0, timeout: float = 20, patience: float = 60
    ) -> Any:
        """The answer of some server, ``first`` before the others; tries again while there is none."""
        deadline = time.monotonic() + patience
        for number in range(1_000_000):
            endpoint = self.endpoints[(first + number) % len(self.endpoints)]
            try:
                return await getattr(endpoint.events, method)(request, metadata=self.metadata, timeout=timeout)
            except grpc.aio.AioRpcError as error:
                if error.code() not in UNANSWERED:
                    raise
                self.errors[error.code()] += 1
                if time.monotonic() > deadline:
                    raise
            if number % len(self.endpoints) == len(self.endpoints) - 1:
                await asyncio.sleep(0.05)
        raise AssertionError

    async def save(
        self,
        *tags: Tags,
        criteria: Sequence[Tags] | None = None,
        expected: Position = NOTHING,
        padding: int = 0,
        twice: bool = False,
        first: int = 0,
        **options: Any,
    ) -> Position:
        """Append an event for each of ``tags``, until there is an answer; raises Conflict.

        With ``twice`` two servers are sent the same call at the same time, and must answer the same.
        """
        ids = tuple(secrets.token_hex(12) for _ in tags)
        attempt = Attempt(ids, None if criteria is None else tuple(criteria), expected, time.monotonic())
        self.history.attempts.append(attempt)
        request = save_request(self.boundary, ids, tags, criteria, expected, padding)
        try:
            answer, *again = await asyncio.gather(
                *(self.call("SaveEvents", request, first=first + n, **options) for n in range(1 + twice))
            )
            assert all(other == answer for other in again), f"{again} instead of {answer}"
        except grpc.aio.AioRpcError as error:
            actual = _ACTUAL.search(error.details() or "")
            if error.code() != Code.ALREADY_EXISTS or actual is None:
                raise
            attempt.answered, attempt.conflict = time.monotonic(), Position(int(actual[1]), int(actual[2]))
            raise Conflict(attempt.conflict) from None
        attempt.answered, attempt.position = time.monotonic(), position_of(answer.log_position)
        return attempt.position

    async def page(
        self,
        count: int,
        *,
        after: Position | None = None,
        criteria: Sequence[Tags] = (),
        desc: bool = False,
        **options: Any,
    ) -> list[Stored]:
        request = pb.GetEventsRequest(boundary=self.boundary, count=count, direction=pb.DESC if desc else pb.ASC)
        if after is not None:
            request.after_position.CopyFrom(message_of(after))
        if criteria:
            request.query.CopyFrom(query_of(criteria))
        return [stored_of(event) for event in (await self.call("GetEvents", request, **options)).events]

    async def pages(self, count: int, *, criteria: Sequence[Tags] = (), **options: Any) -> list[Stored]:
        """Everything from the beginning, page by page."""
        seen: list[Stored] = []
        while page := await self.page(
            count, after=seen[-1].position if seen else NOTHING, criteria=criteria, **options
        ):
            seen += page
        return seen

    async def latest(self, criteria: Sequence[Tags], **options: Any) -> tuple[list[Position | None], Position]:
        request = pb.GetLatestByCriteriaRequest(boundary=self.boundary, criteria=query_of(criteria).criteria)
        answer = await self.call("GetLatestByCriteria", request, **options)
        found = [position_of(r.event.position) if r.HasField("event") else None for r in answer.results]
        return found, position_of(answer.context_position)

    async def log(self) -> list[Stored]:
        """The whole boundary."""
        return await self.pages(1000)

    @contextlib.asynccontextmanager
    async def load(
        self, writers: int = 4, *, pause: float = 0.01, padding: int = 0, timeout: float = 20, events: int = 3
    ) -> AsyncIterator[Load]:
        """Writers that append until the end, each call until it is answered."""
        load = Load(self, writers, pause=pause, padding=padding, timeout=timeout, events=events)
        try:
            yield load
        finally:
            await load.stop()


class Load:
    """Appends under way; ``count`` is the number of events acknowledged so far."""

    def __init__(
        self, client: Client, writers: int, *, pause: float, padding: int, timeout: float, events: int
    ) -> None:
        self.count = 0
        self._client, self._pause, self._padding = client, pause, padding
        self._timeout, self._events = timeout, events
        self._going = True
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(writers)]

    async def _write(self, number: int) -> None:
        chance = random.Random(number)
        while self._going:
            tags = [{"w": str(number), "n": str(n)} for n in range(chance.randint(1, self._events))]
            await self._client.save(*tags, first=number, padding=self._padding, timeout=self._timeout)
            self.count += len(tags)
            await asyncio.sleep(chance.random() * 2 * self._pause)

    async def more(self, events: int, timeout: float = 30) -> None:
        """Waits until that many events more are acknowledged."""
        target = self.count + events

        def reached() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return self.count >= target

        await eventually(reached, timeout, message=f"{events} more events")

    async def stop(self) -> None:
        self._going = False
        await asyncio.gather(*self._tasks)


class Follower:
    """A subscriber that resumes after its last event, on any server, whenever the stream ends; ``async with``."""

    def __init__(
        self,
        client: Client,
        *,
        first: int = 0,
        criteria: Sequence[Tags] = (),
        after: Position | None = None,
        name: str | None = None,
        on_event: Callable[[Stored], None] | None = None,
    ) -> None:
        self._client, self._first, self._criteria = client, first, criteria
        self._after, self._on_event = after, on_event
        self.name = name or secrets.token_hex(6)
        self.events: list[Stored] = []
        #: How streams ended: code and details.
        self.endings: list[tuple[Code, str]] = []
        self.failure: BaseException | None = None

    async def _follow(self) -> None:
        number = self._first
        while True:
            endpoint = self._client.endpoints[number % len(self._client.endpoints)]
            request = pb.CatchUpSubscribeToEventStoreRequest(
                boundary=self._client.boundary, subscriber_name=self.name, query=query_of(self._criteria)
            )
            if self._after is not None:
                request.after_position.CopyFrom(message_of(self._after))
            try:
                async for message in endpoint.events.CatchUpSubscribeToEvents(request, metadata=self._client.metadata):
                    event = stored_of(message)
                    self.events.append(event)
                    self._after = event.position
                    if self._on_event is not None:
                        self._on_event(event)
                raise AssertionError("a subscription ended with OK")
            except grpc.aio.AioRpcError as error:
                # a name is taken until the lease of a dead server ends
                if error.code() not in (Code.UNAVAILABLE, Code.ALREADY_EXISTS):
                    raise
                self.endings.append((error.code(), error.details() or ""))
            number += 1
            await asyncio.sleep(0.05)

    def check(self) -> None:
        """Raises what ended it for good, if anything did."""
        if self.task.done():
            self.task.result()

    async def has(self, count: int, timeout: float = 30) -> None:
        """Waits for that many events."""

        def reached() -> bool:
            self.check()
            return len(self.events) >= count

        try:
            await eventually(reached, timeout)
        except AssertionError:
            raise AssertionError(f"{len(self.events)} of {count} events; streams ended {self.endings[-3:]}") from None

    async def __aenter__(self) -> Follower:
        self.task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@contextlib.asynccontextmanager
async def store(
    settings: Settings, servers: int = 2, environ: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Client, list[ServerProcess]]]:
    """Servers of one store, and a client of its first boundary."""
    processes = [ServerProcess(settings, {**TRANSPORT, **(environ or {})}) for _ in range(servers)]
    async with contextlib.AsyncExitStack() as stack:
        for process in processes:
            stack.push_async_callback(process.close)
        await asyncio.gather(*(process.start() for process in processes))
        client = await stack.enter_async_context(Client(settings.boundaries[0].name, *processes))
        with told(processes):
            yield client, processes


@contextlib.contextmanager
def told(servers: Sequence[ServerProcess]) -> Iterator[None]:
    """A failure inside shows what the servers had to say."""
    try:
        yield
    except BaseException:
        for server in servers:
            lines = [line for line in server.logs.splitlines() if line.startswith("{")]
            print(f"-- {server.address}", *lines[-40:], sep="\n")
        raise


def save_request(
    boundary: str,
    ids: Sequence[str],
    tags: Sequence[Tags],
    criteria: Sequence[Tags] | None = None,
    expected: Position = NOTHING,
    padding: int = 0,
) -> pb.SaveEventsRequest:
    """``criteria`` () is the whole boundary, None no check."""
    metadata = json.dumps({"padding": "x" * padding}) if padding else "{}"
    events = [
        pb.EventToSave(event_id=event_id, event_type="Happened", data=json.dumps(dict(one)), metadata=metadata)
        for event_id, one in zip(ids, tags, strict=True)
    ]
    request = pb.SaveEventsRequest(boundary=boundary, events=events)
    if criteria is not None:
        request.query.expected_position.CopyFrom(message_of(expected))
        request.query.subsetQuery.CopyFrom(query_of(criteria))
    return request


def query_of(criteria: Sequence[Tags]) -> pb.Query:
    return pb.Query(criteria=[pb.Criterion(tags=[pb.Tag(key=k, value=v) for k, v in one.items()]) for one in criteria])


def message_of(position: Position) -> pb.Position:
    return pb.Position(commit_position=position.commit, prepare_position=position.prepare)


def position_of(message: pb.Position) -> Position:
    return Position(message.commit_position, message.prepare_position)


def stored_of(event: pb.Event) -> Stored:
    tags = {key: value for key, value in json.loads(event.data).items() if isinstance(value, str)}
    return Stored(position_of(event.position), event.event_id, tags)
