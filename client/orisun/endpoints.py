"""Connections: which one takes the next call, and new ones where names or certificates have changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import grpc

from orisun_api import admin_pb2_grpc, eventstore_pb2_grpc

from .channels import TLS, Pems, addresses, options_of
from .errors import InvalidArgument, OrisunError, refuse
from .names import Answers, name_of, resolved

_DOWN, _READY = grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.READY
#: Seconds within which a new connection must be there to take the place of one that works.
_PATIENCE = 10.0
#: Seconds over which subscriptions move to servers that were added, each at a moment of its own.
_SPREAD = 10.0
#: Seconds between looks that a connection asks for which is down.
_SOON = 1.0
#: How much longer looks wait for each other, at most, where each finds something new (answers that are never alike).
_LONGEST = 16

_LOG = logging.getLogger("orisun")


class _Process:
    """What this process did with gRPC: once it has used it, no child that it forks can."""

    forked = False
    #: The connections that there are.
    endpoints: ClassVar[weakref.WeakSet[Endpoint]] = weakref.WeakSet()
    #: Those of the process that this one was forked from: gRPC hangs where one is collected in the child.
    kept: ClassVar[list[Endpoint]] = []
    used = False

    @classmethod
    def after_fork(cls) -> None:
        cls.forked, cls.kept = cls.used, list(cls.endpoints)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Process.after_fork)


class Endpoint:
    """One address, its connection, and the stubs of both services on it."""

    def __init__(self, address: str, secure: bool, options: list[tuple[str, Any]], pems: Pems):
        self.address, self.pems = address, pems
        #: What its name stands for.
        self.answers = Answers()
        scheme, _, several = address.partition(":")
        if scheme in ("ipv4", "ipv6") and "," in several:
            # gRPC would name the server by the whole list, which is no host name to an HTTP/2 server
            options = [*options, ("grpc.default_authority", several.partition(",")[0])]
        self.channel = (
            grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(*pems), options=options)
            if secure
            else grpc.aio.insecure_channel(address, options=options)
        )
        # Any: the generated stubs are typed for synchronous channels
        self.events: Any = eventstore_pb2_grpc.EventStoreStub(self.channel)  # type: ignore[no-untyped-call]
        self.admin: Any = admin_pb2_grpc.AdminStub(self.channel)  # type: ignore[no-untyped-call]
        #: What makes streams on this connection leave it for the one that took its place.
        self.leaving: set[Callable[[], None]] = set()
        self._calls, self._idle = 0, asyncio.Event()
        _Process.used = True
        _Process.endpoints.add(self)

    def began(self) -> None:
        """One more call is under way on it, until ``ended``."""
        self._calls += 1

    def ended(self) -> None:
        self._calls -= 1
        self._idle.set()

    async def connected(self) -> bool:
        """Whether it reaches a server, within ``_PATIENCE``."""
        try:
            async with asyncio.timeout(_PATIENCE):
                while (state := self.channel.get_state(try_to_connect=True)) is not _READY:
                    await self.channel.wait_for_state_change(state)
        except TimeoutError:
            return False
        return True

    def move(self) -> None:
        """Streams that may leave do so soon, one after the other."""
        loop = asyncio.get_running_loop()
        for leave in tuple(self.leaving):
            loop.call_later(random.uniform(0, _SPREAD), leave)  # noqa: S311 - no secret

    async def retire(self) -> None:
        """Close it when its calls have ended."""
        # not gRPC's own grace: where that is cancelled, the connection is never closed
        while self._calls:
            self._idle.clear()
            await self._idle.wait()
        await self.channel.close(None)


class Endpoints:
    """Connections to all addresses of a client; calls go round them, past those that are down.

    Connections are made at the first call, in its event loop. Every ``refresh`` seconds (0: never) names are resolved
    again and files of certificates read again; where a name has got addresses, or a file other content, a new
    connection takes the place of the old one as soon as it is there.
    """

    def __init__(self, target: str | Sequence[str], tls: TLS | None, keepalive: float, refresh: float = 0.0) -> None:
        if refresh < 0:
            refuse(f"refresh {refresh} is negative; give seconds, or 0 for never")
        self._addresses = addresses(target)
        self._tls, self._refresh = tls, refresh
        self._pems: Pems = tls.read() if tls is not None else (None, None, None)
        self._options = options_of(tls, keepalive)
        self._changing = tls is not None and tls.is_of_files
        self._endpoints: list[Endpoint] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next = 0
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._looked, self._news = 0.0, 0
        self._retired: dict[asyncio.Task[None], Endpoint] = {}
        self._closed = False

    @property
    def addresses(self) -> str:
        """The addresses, for messages."""
        return ", ".join(self._addresses)

    def pick(self) -> Endpoint:
        """The one whose turn it is, of those that are connected; while none is, of those that are not known to be down.

        Raises OrisunError in another event loop than that of the first call, and after a fork.
        """
        self._check_place()
        if not self._endpoints:
            self._endpoints = [self._made(address, self._pems) for address in self._addresses]
            if self._changing or any(map(name_of, self._addresses)):
                self._look()
        maybe: int | None = None
        for turn in range(self._next, self._next + len(self._endpoints)):
            # asking connects it again, so that it gets its turn when it is back
            state = self._endpoints[turn % len(self._endpoints)].channel.get_state(try_to_connect=True)
            if state is _READY:
                maybe = turn
                break
            if state is not _DOWN:
                maybe = turn if maybe is None else maybe
            elif self._changing and time.monotonic() - self._looked > _SOON:
                self._look()  # it may be down because it knows an authority or has a certificate that is good no more
        turn = self._next if maybe is None else maybe
        self._next = turn + 1
        return self._endpoints[turn % len(self._endpoints)]

    async def choose(self, patience: float) -> Endpoint:
        """``pick``, once it has shown which of several addresses answer, for ``patience`` seconds at most: a call that
        may not be repeated is not to meet one that is down."""
        endpoint = self.pick()
        if len(self._endpoints) == 1 or endpoint.channel.get_state() is _READY:
            return endpoint
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._settled()
        return self.pick()

    async def close(self) -> None:
        """Closes the connections; calls on them end."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if _Process.forked or (self._loop is not None and self._loop.is_closed()):
            self._endpoints, self._retired, self._looking = [], {}, None
        if self._looking is not None:
            await _cancelled(self._looking)
        endpoints = [*self._endpoints, *self._retired.values()]
        for task in tuple(self._retired):
            await _cancelled(task)
        for endpoint in endpoints:
            await endpoint.channel.close(None)

    async def _settled(self) -> None:
        """Returns when one is connected, or all are down."""
        while True:
            channels = [endpoint.channel for endpoint in self._endpoints]
            states = [channel.get_state(try_to_connect=True) for channel in channels]
            if _READY in states or all(state is _DOWN for state in states):
                return
            changes = [
                asyncio.ensure_future(channel.wait_for_state_change(state))
                for channel, state in zip(channels, states, strict=True)
            ]
            try:
                done, _ = await asyncio.wait(changes, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for change in changes:
                    change.cancel()
            for change in done:
                change.result()  # raises where the client was closed

    def _made(self, address: str, pems: Pems) -> Endpoint:
        return Endpoint(address, self._tls is not None, self._options, pems)

    # -- what changes ------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Look for what has changed, in the background."""
        if self._refresh and not self._closed and (self._looking is None or self._looking.done()):
            if self._timer is not None:
                self._timer.cancel()
            self._looked = time.monotonic()
            self._looking = asyncio.create_task(self._renew(), name="orisun-refresh")

    async def _renew(self) -> None:
        news = False
        try:
            for number, address in enumerate(self._addresses):
                present = self._endpoints[number]
                pems = await self._read(present.pems)
                if name := name_of(address):
                    # where it cannot be told gRPC says so, if that matters; that servers are gone it notices itself
                    present.answers.look(await resolved(name))
                if pems != present.pems or present.answers.added:
                    news = await self._replace(number, pems) or news
        finally:
            self._news = min(2 * self._news or 2, _LONGEST) if news else 0
            pause = self._refresh * max(self._news, 1) * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, no secret
            # a client that is dropped without a word is not kept by its timer
            self._timer = asyncio.get_running_loop().call_later(pause, _look_again, weakref.ref(self))

    async def _read(self, present: Pems) -> Pems:
        """What a connection made now would be made of; what cannot be read is as it was."""
        if self._tls is None or not self._changing:
            return present
        try:
            return await asyncio.to_thread(self._tls.read)
        except InvalidArgument as problem:
            _LOG.warning("%s; the connection goes on with what was read before", problem)
            return present

    async def _replace(self, number: int, pems: Pems) -> bool:
        """A new connection in the place of one, if it reaches a server."""
        old = self._endpoints[number]
        new = self._made(old.address, pems)
        try:
            connected = await new.connected()
        except BaseException:
            await new.channel.close(None)
            raise
        if not connected:
            _LOG.warning("%s: no server is reached by a new connection; the present one stays", old.address)
            await new.channel.close(None)
            return False
        moves, new.answers = bool(old.answers.added), old.answers
        new.answers.added = frozenset()
        _LOG.info("%s: a new connection, for its %s", old.address, "addresses" if moves else "TLS")
        self._endpoints[number] = new
        retiring = asyncio.create_task(old.retire(), name="orisun-retire")
        self._retired[retiring] = old
        # also streams that stayed on an older one, when only certificates had changed
        for one in self._retired.values() if moves else ():
            if one.address == old.address:
                one.move()
        retiring.add_done_callback(lambda task: self._retired.pop(task, None))
        return True

    def _check_place(self) -> None:
        # gRPC itself would wait for ever here, or end the process
        if _Process.forked:
            raise OrisunError(
                "this process was forked from one that had used a client of Orisun, and gRPC does not survive that; "
                'connect in the child alone, or start processes by "spawn" or "forkserver"'
            )
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise OrisunError(
                "this client was used in another event loop before, and belongs to it (each asyncio.run makes one): "
                "connect inside of the coroutine that asyncio.run is given, once for each loop"
            )


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _look_again(endpoints: weakref.ref[Endpoints]) -> None:
    if (alive := endpoints()) is not None:
        alive._look()
