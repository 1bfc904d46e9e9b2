"""The synchronous faces of the client's parts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from .. import admin as aio_admin
from .. import boundary as aio_boundary
from .. import client as aio_client
from .. import decisions, executor, snapshots, streaming, streams
from ..channels import TLS
from ..codecs import Codec, EventTypes
from ..decisions import Decision, Projector
from ..errors import refuse
from ..events import Event
from ..logs import Logger
from ..position import Position
from ..pubsub import Message
from ..queries import EVERYTHING, Query
from ..retries import RetryPolicy
from ..subscription import Subscription as AioSubscription
from .background import LOOP, Caller, Face, blocking, iterating, like
from .live import Messages, Subscription

C = TypeVar("C")
P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class Admin(Face[aio_admin.Admin]):
    __doc__ = aio_admin.Admin.__doc__

    create_boundary = blocking(aio_admin.Admin.create_boundary)
    boundaries = blocking(aio_admin.Admin.boundaries)
    boundary = blocking(aio_admin.Admin.boundary)
    event_count = blocking(aio_admin.Admin.event_count)
    create_index = blocking(aio_admin.Admin.create_index)
    drop_index = blocking(aio_admin.Admin.drop_index)
    indexes = blocking(aio_admin.Admin.indexes)
    index_build = blocking(aio_admin.Admin.index_build)
    index = blocking(aio_admin.Admin.index)
    create_user = blocking(aio_admin.Admin.create_user)
    delete_user = blocking(aio_admin.Admin.delete_user)
    set_roles = blocking(aio_admin.Admin.set_roles)
    change_password = blocking(aio_admin.Admin.change_password)
    users = blocking(aio_admin.Admin.users)
    user_count = blocking(aio_admin.Admin.user_count)
    validate_credentials = blocking(aio_admin.Admin.validate_credentials)
    create_token = blocking(aio_admin.Admin.create_token)
    tokens = blocking(aio_admin.Admin.tokens)
    revoke_token = blocking(aio_admin.Admin.revoke_token)


class AggregateStream(Face[streams.AggregateStream]):
    __doc__ = streams.AggregateStream.__doc__

    append = blocking(streams.AggregateStream.append)
    version = blocking(streams.AggregateStream.version)
    read = iterating(streams.AggregateStream.read)

    @like(streams.AggregateStream.fold)
    def fold(
        self,
        initial: S,
        apply: Callable[[S, Event], S],
        *,
        snapshots: snapshots.Snapshots[S] | None = None,
        every: int = 100,
    ) -> streams.Folded[S]:
        return LOOP.run(self.aio.fold(initial, apply, snapshots=snapshots, every=every))

    def __str__(self) -> str:
        return str(self.aio)


class Boundary(Face[aio_boundary.Boundary]):
    __doc__ = aio_boundary.Boundary.__doc__

    append = blocking(aio_boundary.Boundary.append)
    read = iterating(aio_boundary.Boundary.read)
    latest = blocking(aio_boundary.Boundary.latest)
    commands = iterating(aio_boundary.Boundary.commands)
    decide = blocking(aio_boundary.Boundary.decide)

    @property
    def name(self) -> str:
        """The boundary's name."""
        return self.aio.name

    @like(aio_boundary.Boundary.stream)
    def stream(self, aggregate_type: str, aggregate_id: object) -> AggregateStream:
        return AggregateStream(self.aio.stream(aggregate_type, aggregate_id))

    @like(aio_boundary.Boundary.subscribe)
    def subscribe(self, name: str, query: Query = EVERYTHING, *, after: Position | None = None) -> Subscription:
        async def make() -> AioSubscription:
            return self.aio.subscribe(name, query, after=after)

        return Subscription(LOOP.run(make()))


class Client(Face[aio_client.Client]):
    """Connections to the servers of a store; ``orisun.sync.connect`` makes it.

    It connects at the first call. Use it inside ``with``, or ``close`` it. Any thread may use it, many at a time.
    """

    ping = blocking(aio_client.Client.ping)
    server_info = blocking(aio_client.Client.server_info)
    publish = blocking(aio_client.Client.publish)
    close = blocking(aio_client.Client.close)

    @property
    def admin(self) -> Admin:
        """Boundaries, indexes, users and API tokens."""
        return Admin(self.aio.admin)

    @like(aio_client.Client.boundary)
    def boundary(self, name: str) -> Boundary:
        return Boundary(self.aio.boundary(name))

    @like(aio_client.Client.messages)
    def messages(self, subject: str, consumer: str) -> Messages:
        async def make() -> streaming.LiveStream[Message]:
            return self.aio.messages(subject, consumer)

        return Messages(LOOP.run(make()))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class CommandExecutor:
    """``orisun.CommandExecutor``, whose handlers are plain functions.

    They run in the thread that called ``execute``, and may block. ``timeout`` does not interrupt one, but what it
    returns too late is not appended.
    """

    @like(executor.CommandExecutor.__init__)
    def __init__(
        self,
        store: Boundary,
        *,
        retry: RetryPolicy = executor.ON_CONFLICT,
        max_commands: int | None = None,
        track: bool = True,
    ) -> None:
        self.aio = executor.CommandExecutor(store.aio, retry=retry, max_commands=max_commands, track=track)

    @like(executor.CommandExecutor.register)
    def register(
        self,
        kind: type[C],
        projectors: Callable[[C], Iterable[Projector[Any]]],
        handle: Callable[[C, Decision], Iterable[object]],
    ) -> None:
        if inspect.iscoroutinefunction(handle):
            refuse("handlers of a synchronous executor are plain functions; orisun.CommandExecutor awaits coroutines")

        def by_caller(command: C, decision: Decision) -> Coroutine[Any, Any, Iterable[object]]:
            def work() -> Iterable[object]:
                made = handle(command, decision)
                # a generator does its work there too, not in the loop
                return list(made) if isinstance(made, Iterator) else made

            return Caller.do(work)

        self.aio.register(kind, projectors, by_caller)

    @like(executor.CommandExecutor.handler)
    def handler(
        self, kind: type[C], projectors: Callable[[C], Iterable[Projector[Any]]]
    ) -> Callable[[Callable[[C, Decision], Iterable[object]]], Callable[[C, Decision], Iterable[object]]]:
        def decorate(handle: Callable[[C, Decision], Iterable[object]]) -> Callable[[C, Decision], Iterable[object]]:
            self.register(kind, projectors, handle)
            return handle

        return decorate

    @like(executor.CommandExecutor.execute)
    def execute(
        self,
        command: object,
        *,
        command_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> executor.Executed:
        return Caller().run(self.aio.execute(command, command_id=command_id, metadata=metadata, timeout=timeout))


def event_snapshots(
    store: Boundary, kind: type[S] | None = None, *, schema: int = 1, codec: Codec | None = None
) -> snapshots.EventSnapshots[S]:
    """``orisun.EventSnapshots`` for ``AggregateStream.fold``, on a synchronous boundary."""
    return snapshots.EventSnapshots(store.aio, kind, schema=schema, codec=codec)


@like(decisions.decide)
def decide(store: Boundary, *projectors: Projector[Any], page_size: int = 500) -> Decision:
    return LOOP.run(decisions.decide(store.aio, *projectors, page_size=page_size))


@functools.wraps(aio_client.connect)
def connect(
    target: str | Sequence[str] = "localhost:5005",
    *,
    username: str | None = None,
    password: str | None = None,
    token: str | None = None,
    tls: bool | TLS = False,
    types: EventTypes | None = None,
    timeout: float = 30.0,
    retry: RetryPolicy | None = None,
    keepalive: float = 30.0,
    refresh: float = 30.0,
    max_calls: int | None = None,
    logger: Logger | None = None,
) -> Client:
    return Client(
        aio_client.connect(
            target,
            username=username,
            password=password,
            token=token,
            tls=tls,
            types=types,
            timeout=timeout,
            retry=retry,
            keepalive=keepalive,
            refresh=refresh,
            max_calls=max_calls,
            logger=logger,
        )
    )
