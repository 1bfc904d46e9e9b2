"""The client: connections to a store, and what one does with them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from orisun_api import eventstore_pb2 as pb

from .admin import Admin
from .boundary import Boundary
from .calls import Calls, Session
from .channels import TLS
from .codecs import EventTypes
from .endpoints import Endpoints
from .errors import refuse
from .logs import Logger
from .pubsub import Messages
from .retries import RetryPolicy
from .streaming import LiveStream


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says about itself."""

    version: str
    git_commit: str
    build_time: str
    #: Where events are stored: ``postgres``, or another one in lower case.
    backend: str
    node_id: str
    #: What it can do, in lower case, such as ``command_context_consistency``.
    capabilities: frozenset[str]


class Client:
    """Connections to the servers of a store; ``orisun.connect`` makes it.

    It connects at the first call. Use it inside ``async with``, or ``close`` it. One client is enough for a process:
    all of its calls may run at the same time, in one event loop.
    """

    def __init__(self, calls: Calls, types: EventTypes, logger: Logger | None = None) -> None:
        self.calls, self.types, self.logger = calls, types, logger
        #: Streams to end when the client closes.
        self.streams: weakref.WeakSet[LiveStream[Any]] = weakref.WeakSet()

    @property
    def admin(self) -> Admin:
        """Boundaries, indexes, users and API tokens."""
        return Admin(self.calls)

    def boundary(self, name: str) -> Boundary:
        """The boundary of that name; whether the server has it shows at the first call."""
        return Boundary(self, name)

    async def ping(self, *, timeout: float | None = None) -> None:
        """Returns when a server answers and accepts who is calling. Raises Unavailable, Unauthenticated."""
        await self.calls.unary("events", "Ping", pb.PingRequest(), timeout=timeout)

    async def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """What the server that answers says about itself."""
        info = await self.calls.unary("events", "GetServerInfo", pb.GetServerInfoRequest(), timeout=timeout)
        backend = _named(pb.StorageBackend, info.backend, "STORAGE_BACKEND_")
        capabilities = (_named(pb.ServerCapability, number, "SERVER_CAPABILITY_") for number in info.capabilities)
        return ServerInfo(
            info.version, info.git_commit, info.build_time, backend, info.node_id, frozenset(capabilities)
        )

    async def publish(self, subject: str, data: str, *, metadata: str = "", timeout: float | None = None) -> None:
        """Send a message to whoever listens to the subject now; nothing is stored, and nobody may listen.

        ``subject`` is words joined by dots, without wildcards; ``data`` and ``metadata`` are any text.
        """
        request = pb.PublishRequest(subject=subject, data=data, metadata=metadata)
        await self.calls.unary("events", "PublishToPubSub", request, timeout=timeout, repeatable=False)

    def messages(self, subject: str, consumer: str) -> Messages:
        """The messages of a subject from now on; use it inside ``async with`` like a subscription.

        Those who listen under one ``consumer`` name share the messages, different names each get all. Messages sent
        while the connection is lost are missed.
        """
        stream = Messages(self.calls, subject, consumer)
        self.streams.add(stream)
        return stream

    async def close(self) -> None:
        """Ends subscriptions and closes the connections."""
        for stream in tuple(self.streams):
            await stream.aclose()
        await self.calls.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _named(enum: Any, number: int, prefix: str) -> str:
    """The name of an enum's value, its number where a newer server has one that is not known here."""
    return enum.Name(number).removeprefix(prefix).lower() if number in enum.values() else str(number)


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
    """A client of the store at ``target``: ``"host:port"``, or several of them (a list, or joined by commas).

    Calls go round all addresses, and round all that a DNS name stands for (``"orisun-headless:5005"``); one that is
    down is passed over. Nothing is sent before the first call, so a wrong address or password shows there.

    Args:
        username, password: Sent once; the session token that the server gives for them is used from then on.
        token: An API token instead of them (``orisun_...``), or a session token of another client.
        tls: True for TLS with the authorities that gRPC knows, or ``TLS(...)`` with certificates of your own.
        types: Classes, codecs and upcasters of event types.
        timeout: Seconds that a call may take, with its retries, where the call does not say otherwise.
        retry: How often calls that are safe to repeat are tried again when no server answers. Appends are safe, for
            their event ids make them so; changes of users, boundaries and passwords are not, nor are pub/sub messages.
        keepalive: Seconds after which a silent connection is probed, at least 5; 0 for never.
        refresh: Seconds after which DNS names are resolved again and files of certificates read again, so that servers
            that were added, and certificates that were renewed, are used without a restart; 0 for never.
        max_calls: Calls that may be under way at a time; one more raises TooManyCalls at once.
        logger: Is told of appends, conflicts and reads, with counts and positions and never with values of data.

    Raises InvalidArgument for an address that is none, or a certificate that cannot be read.
    """
    for name, value, kinds in (
        ("tls", tls, bool | TLS),
        ("types", types, EventTypes | None),
        ("retry", retry, RetryPolicy | None),
        ("timeout", timeout, int | float),
        ("keepalive", keepalive, int | float),
        ("refresh", refresh, int | float),
    ):
        if not isinstance(value, kinds):
            refuse(f"{name} is a {type(value).__name__}; see help(orisun.connect)")
    if timeout <= 0:
        refuse(f"a timeout of {timeout} seconds lets no call succeed")
    if keepalive < 0:
        refuse(f"keepalive {keepalive} is negative: give seconds, or 0 for never")
    if token is not None and username is not None:
        refuse("give a username and password, or a token, not both")
    with_tls = tls if isinstance(tls, TLS) else TLS() if tls else None
    endpoints = Endpoints(target, with_tls, keepalive, refresh)
    session = Session(username, password, token)
    return Client(Calls(endpoints, session, retry or RetryPolicy(), timeout, max_calls), types or EventTypes(), logger)
