"""The one wrapper around every rpc: authentication, roles, errors as statuses, the end of calls.

Servicers are plain functions that know nothing of gRPC: ``async def get_events(request, caller)`` returns the response,
an async generator yields the responses of a stream, one or a list at a time. A response is a message, or bytes that are
its serialized form already (in a list always). Here they become handlers for ``add_registered_method_handlers``, the
same for grpc.aio and pygrpc_native.aio.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from ..core.access import RPCS, check, check_boundary
from ..core.proxies import Proxies
from ..core.users import Caller, Session
from ..deadlines import time_left
from ..errors import (
    InvalidArgument,
    OrisunError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from ..observation import Watch
from ..observation.watch import WatchedCall
from .peer import certificate_names, peer_address
from .status import abort_of
from .wire import problem_of

_TOKEN = "x-auth-token"  # noqa: S105 - the name of a header
_SHUTTING_DOWN = "the server is shutting down; call again, on another server if there is one"
_Context = grpc.aio.ServicerContext[Any, Any]
WriteAll = Callable[[Any, list[bytes]], Awaitable[None]]
_SESSION_ENDED = "invalid credentials"
_IN_HAND = "{} bytes of large requests are in hand already (ORISUN_APPEND_QUEUE_BYTES={}); try again later"
#: A caller of rpcs that need no authentication.
_NOBODY = Caller("", "", frozenset(), 0)
_GET_BOUNDARY = "orisun.Admin/GetBoundary"
#: Bytes of a request that is worth counting: as many smaller ones as may wait come to little.
_LARGE = 16 * 1024
#: Whose handlers are told where a call comes from, for the audit log.
_ADMINISTRATION = frozenset(rpc for rpc, rule in RPCS.items() if rule.is_administration)


class Authenticator(Protocol):
    """Who is calling; admin/sessions.py implements it."""

    async def authenticate(
        self,
        authorization: str | None,
        token: str | None,
        peer: Callable[[], str],
        certificate: Callable[[], Iterable[str]],
    ) -> Session:
        """The session of a call with these headers, from that address, with that client certificate; raises
        Unauthenticated."""

    def is_valid(self, caller: Caller) -> bool:
        """Whether the caller's user still exists with the same password and roles."""


@dataclass(frozen=True)
class Service:
    """A service of the wire and the object whose methods, in snake case, serve its rpcs."""

    descriptor: ServiceDescriptor
    servicer: object
    authenticated: bool = True

    @property
    def name(self) -> str:
        return str(self.descriptor.full_name)

    def function(self, method: MethodDescriptor) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(self.servicer, snake_case(method.name))
        return function


def snake_case(name: str) -> str:
    """``GetEventCount`` -> ``get_event_count``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@dataclass(eq=False)
class _Stream:
    caller: Caller
    task: asyncio.Task[Any]
    ended_with: OrisunError | None = field(default=None)

    def end(self, error: OrisunError) -> None:
        if self.ended_with is None:
            self.ended_with = error
            self.task.cancel()


async def _write_each(context: _Context, messages: list[bytes]) -> None:
    for message in messages:
        await context.write(message)


class Calls:
    """Makes handlers of services, and ends calls when the server stops or a user is gone."""

    def __init__(
        self,
        authenticator: Authenticator,
        admin_boundary: str,
        watch: Watch | None = None,
        *,
        denied: Callable[[Caller, str, str], None] = lambda caller, rpc, boundary: None,
        proxies: Proxies | None = None,
        most_bytes: int = 256 * 1024 * 1024,
    ) -> None:
        """``denied(caller, rpc, boundary)`` notes calls that a role was missing for; ``proxies`` are believed about
        where a call comes from; large requests are in hand up to ``most_bytes`` in all."""
        self._peer_address = functools.partial(peer_address, proxies=proxies or Proxies())
        self._denied = denied
        self._watch = watch or Watch()
        self._authenticator = authenticator
        self._admin_boundary = admin_boundary
        self._streams: set[_Stream] = set()
        #: Set when calls that came after ``drain`` are to be told so; None before.
        self._told: asyncio.Event | None = None
        #: Calls that came after ``drain``.
        self.late = 0
        self._most_bytes = most_bytes
        #: Bytes of the large requests that have no answer yet.
        self._bytes = 0

    def handlers(
        self, service: Service, write_all: WriteAll = _write_each
    ) -> dict[str, grpc.RpcMethodHandler[bytes, bytes]]:
        """Handlers by method name, as ``add_registered_method_handlers`` takes them.

        ``write_all(context, messages)`` writes serialized messages of a stream.
        """
        return {method.name: self._handler(service, method, write_all) for method in service.descriptor.methods}

    def drain(self) -> None:
        """Ends the streams with UNAVAILABLE; unary calls go on, and new ones wait for ``refuse``."""
        self._told = self._told or asyncio.Event()
        for stream in tuple(self._streams):
            stream.end(Unavailable(_SHUTTING_DOWN))

    def refuse(self) -> None:
        """Ends the calls that came after ``drain``, and those that still come, with UNAVAILABLE."""
        if self._told is not None:
            self._told.set()

    def end_invalid(self) -> None:
        """Ends the streams of users who were deleted or changed their password."""
        for stream in tuple(self._streams):
            if stream.caller is not _NOBODY and not self._authenticator.is_valid(stream.caller):
                stream.end(Unauthenticated(_SESSION_ENDED))

    def _handler(
        self, service: Service, method: MethodDescriptor, write_all: WriteAll
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        rpc = f"{service.name}/{method.name}"
        function = service.function(method)
        message = GetMessageClass(method.input_type)
        if not method.server_streaming:
            return grpc.unary_unary_rpc_method_handler(self._unary(rpc, function, message, service.authenticated))
        stream = self._stream(
            rpc, function, message, service.authenticated, many=method.client_streaming, write_all=write_all
        )
        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.unary_stream_rpc_method_handler(stream)

    def _unary(
        self, rpc: str, function: Callable[..., Any], message: type[Message], authenticated: bool
    ) -> Callable[..., Any]:
        async def handle(raw: bytes, context: _Context, watched: WatchedCall) -> bytes:
            caller = _NOBODY
            time_left.set(context.time_remaining)
            try:
                if authenticated:
                    caller = await self._admit(rpc, context)
                    check(rpc, RPCS, caller)
                return _bytes(await function(self._parse(rpc, message, raw, caller), caller))
            except grpc.aio.BaseError:  # the client is gone
                raise
            except Exception as unexpected:  # every error becomes a status here
                error = unexpected
            self._note(error, rpc, caller, context)
            abort = abort_of(error, rpc)
            watched.failed(abort.code.name)
            return await context.abort(*abort)

        async def handle_large(raw: bytes, context: _Context, watched: WatchedCall) -> bytes:
            """Refuses it before anything is made of it, which would take a multiple of its memory."""
            size = len(raw)
            if self._bytes and self._bytes + size > self._most_bytes:
                abort = abort_of(ResourceExhausted(_IN_HAND.format(self._bytes, self._most_bytes)), rpc)
                watched.failed(abort.code.name)
                return await context.abort(*abort)
            self._bytes += size
            try:
                return await handle(raw, context, watched)
            finally:
                self._bytes -= size

        return self._watched(
            rpc,
            lambda raw, context, call: (handle if len(raw) < _LARGE else handle_large)(raw, context, call),
        )

    def _stream(
        self,
        rpc: str,
        function: Callable[..., Any],
        message: type[Message],
        authenticated: bool,
        *,
        many: bool,
        write_all: WriteAll,
    ) -> Callable[..., Any]:
        async def handle(raw: Any, context: _Context, watched: WatchedCall) -> None:
            error: Exception
            stream = _Stream(_NOBODY, _current_task())
            self._streams.add(stream)
            try:
                if authenticated:
                    stream.caller = await self._admit(rpc, context, streams=True)
                    check(rpc, RPCS, stream.caller)
                caller = stream.caller
                parse: Callable[..., Any] = self._parse_all if many else self._parse
                request = parse(rpc, message, raw, caller)
                async with aclosing(function(request, caller)) as responses:
                    async for response in responses:
                        if isinstance(response, list):
                            await write_all(context, response)
                        else:
                            await context.write(_bytes(response))
                return
            except asyncio.CancelledError:
                if stream.ended_with is None:
                    raise
                stream.task.uncancel()
                error = stream.ended_with
            except grpc.aio.BaseError:
                raise
            except Exception as unexpected:
                error = unexpected
            finally:
                self._streams.discard(stream)
            self._note(error, rpc, stream.caller, context)
            abort = abort_of(error, rpc)
            watched.failed(abort.code.name)
            await context.abort(*abort)

        return self._watched(rpc, handle)

    def _watched(self, rpc: str, handle: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        watch, counts = self._watch, self._watch.metrics.rpc(rpc)

        async def watched(raw: Any, context: _Context) -> Any:
            with watch.call(counts, context) as call:
                return await handle(raw, context, call)

        return watched

    async def _admit(self, rpc: str, context: _Context, *, streams: bool = False) -> Caller:
        if self._told is not None:
            self.late += 1
            await self._told.wait()
            raise Unavailable(_SHUTTING_DOWN)
        authorization = token = None
        for key, value in context.invocation_metadata() or ():
            if key == "authorization":
                authorization = authorization or str(value)
            elif key == _TOKEN:
                token = token or str(value)
        caller, token = await self._authenticator.authenticate(
            authorization,
            token,
            functools.partial(self._peer_address, context),
            functools.partial(certificate_names, context),
        )
        if token or streams:
            # a stream's also without a token: while it is idle its client learns that it was let in
            await context.send_initial_metadata(((_TOKEN, token),) if token else ())
        return caller._replace(peer=self._peer_address(context)) if rpc in _ADMINISTRATION else caller

    def _parse(self, rpc: str, message: type[Message], raw: bytes, caller: Caller) -> Message:
        try:
            request = message.FromString(raw)
        except DecodeError:
            raise InvalidArgument(f"invalid request: {problem_of(message, raw)}") from None
        if rpc == _GET_BOUNDARY:
            # which boundaries there are is no secret of the admin boundary
            check_boundary(rpc, RPCS, caller, getattr(request, "name", ""))
        elif boundary := getattr(request, "boundary", ""):
            check_boundary(rpc, RPCS, caller, boundary, self._admin_boundary)
        return request

    async def _parse_all(
        self, rpc: str, message: type[Message], raws: AsyncIterator[bytes], caller: Caller
    ) -> AsyncIterator[Message]:
        async for raw in raws:
            yield self._parse(rpc, message, raw, caller)

    def _note(self, error: Exception, rpc: str, caller: Caller, context: _Context) -> None:
        if isinstance(error, PermissionDenied):
            self._denied(caller._replace(peer=self._peer_address(context)), rpc, getattr(error, "boundary", ""))


def _bytes(response: bytes | Message) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a call runs outside a task")
    return task
