"""The one way calls go out: who is calling, deadlines, retries, limits, and errors as this library's own."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any, NamedTuple

import grpc

from .endpoints import Endpoint, Endpoints
from .errors import ClientClosed, OrisunError, of_rpc, refuse
from .limits import Limit
from .retries import RetryPolicy

_TOKEN = "x-auth-token"  # noqa: S105 - the name of a header
#: How API tokens begin; any other token is one of a session.
_API_TOKEN = "orisun_"  # noqa: S105 - no secret
#: Seconds after which the server is asked for its opinion of the token again; it renews tokens within hours.
_TOKEN_CHECK = 300.0

#: Seconds for which a stream waits until one of several addresses answers.
_PATIENCE = 10.0

#: The rpc of appends.
_APPEND = "SaveEvents"

Metadata = tuple[tuple[str, str], ...]


class Session:
    """Who is calling: user name and password once, the session token that the server gave for them from then on; or an
    API token; or nobody, where a client certificate says it."""

    def __init__(self, username: str | None, password: str | None, token: str | None) -> None:
        if (username is None) != (password is None):
            refuse("a username and a password go together; give both, or a token")
        if token is not None:
            token = _cleaned(token)
        self._header: Metadata = ()
        self._token: Metadata = ()
        self._checked = 0.0
        if username is not None:
            if ":" in username:
                refuse("a username holds no colon")
            pair = base64.b64encode(f"{username}:{password}".encode()).decode()
            self._header = (("authorization", f"Basic {pair}"),)
        elif token is not None and token.startswith(_API_TOKEN):
            self._header = (("authorization", f"Bearer {token}"),)
        elif token is not None:
            self._token = ((_TOKEN, token),)
        #: whether the server gives session tokens to who calls like this
        self._renewed = username is not None or bool(self._token)

    def metadata(self) -> Metadata:
        """What a call says about who makes it."""
        return self._token or self._header

    @property
    def is_nobody(self) -> bool:
        """Whether neither a password nor a token was given."""
        return not self._header and not self._token

    def forget(self, refused: Metadata) -> bool:
        """After UNAUTHENTICATED for a call with this metadata: whether another attempt may fare better."""
        if not self._header or refused == self._header:
            return False
        if self._token == refused:
            self._token = ()
        return True

    async def learn(self, call: Any) -> None:
        """Takes the token from the initial metadata of a call that was answered."""
        now = time.monotonic()
        if not self._renewed or (self._token and now - self._checked < _TOKEN_CHECK):
            return
        for key, value in await call.initial_metadata() or ():
            if key == _TOKEN and isinstance(value, str) and value:
                self._token, self._checked = ((_TOKEN, value),), now


class Opened(NamedTuple):
    """A call of a streaming rpc."""

    call: Any
    #: Who it was opened as.
    metadata: Metadata
    #: The connection that it is on.
    endpoint: Endpoint


class Calls:
    """Makes the calls of a client."""

    def __init__(
        self, endpoints: Endpoints, session: Session, retry: RetryPolicy, timeout: float, most: int | None
    ) -> None:
        self.retry = retry
        self._endpoints, self._session, self._timeout = endpoints, session, timeout
        self._limit = Limit(most, "calls of this client")
        self._closed = False

    async def unary(
        self, service: str, rpc: str, request: Any, *, timeout: float | None = None, repeatable: bool = True
    ) -> Any:
        """The response of an rpc; ``service`` is ``events`` or ``admin``.

        ``timeout`` bounds it with all its attempts, in seconds. Where it is ``repeatable``, UNAVAILABLE is tried again
        by the client's policy: the server answers a repeated append with the first one's result.
        """
        with self._limit:
            deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
            failures = 0
            while True:
                metadata = self._session.metadata()
                try:
                    return await self._attempt(service, rpc, request, metadata, deadline)
                except grpc.aio.AioRpcError as error:
                    code = error.code()
                    if code is grpc.StatusCode.UNAUTHENTICATED and self._session.forget(metadata):
                        continue
                    failures += 1
                    pause = self.retry.pause(failures)
                    again = repeatable and code is grpc.StatusCode.UNAVAILABLE and self.retry.allows(failures)
                    if not again or time.monotonic() + pause >= deadline:
                        raise self.error(error, rpc) from None
                await asyncio.sleep(pause)

    async def _attempt(self, service: str, rpc: str, request: Any, metadata: Metadata, deadline: float) -> Any:
        self.check_open()
        try:
            endpoint = await self._endpoints.choose(deadline - time.monotonic())
            endpoint.began()
            try:
                method = getattr(getattr(endpoint, service), rpc)
                call = method(request, timeout=max(deadline - time.monotonic(), 0.001), metadata=metadata)
                response = await call
                await self._session.learn(call)
                return response
            finally:
                endpoint.ended()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise ClientClosed("the client was closed during the call") from None
            raise
        except grpc.aio.UsageError:
            self.check_open()
            raise

    async def stream(self, rpc: str, request: Any) -> Opened:
        """A call of a streaming rpc of the event store."""
        self.check_open()
        endpoint = await self._endpoints.choose(_PATIENCE)
        metadata = self._session.metadata()
        return Opened(getattr(endpoint.events, rpc)(request, metadata=metadata), metadata, endpoint)

    async def learn(self, call: Any) -> None:
        """Takes the session token of a stream that was opened."""
        await self._session.learn(call)

    def may_login_again(self, metadata: Metadata) -> bool:
        """Whether a call that was refused as UNAUTHENTICATED with this metadata is worth another attempt."""
        return self._session.forget(metadata)

    def error(self, error: grpc.aio.AioRpcError, rpc: str = "") -> OrisunError:
        """The error that a failed call means, with what is known here: whom it went to, and what to do."""
        made, code = of_rpc(error), error.code()
        if code is grpc.StatusCode.UNAVAILABLE:
            return type(made)(f"{made} ({self._endpoints.addresses})")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            stored = "; the append may have been stored, and may be repeated with the same events"
            return type(made)(f"{made} ({self._endpoints.addresses}){stored if rpc == _APPEND else ''}")
        if code is grpc.StatusCode.UNAUTHENTICATED and self._session.is_nobody:
            return type(made)(f"{made}; give connect() a username and a password, or a token")
        return made

    def check_open(self) -> None:
        """Raises ClientClosed after ``close``."""
        if self._closed:
            raise ClientClosed("the client is closed; make a new one with orisun.connect()")

    async def close(self) -> None:
        self._closed = True
        await self._endpoints.close()


def _cleaned(token: str) -> str:
    """The token without the spaces and line ends that files and environments add. Raises InvalidArgument."""
    token = token.strip()
    if not token:
        refuse("the token is empty; leave it out, or give the one that was issued")
    if not (token.isascii() and token.isprintable()):
        refuse("the token holds characters that no token has (it is not shown); give it as it was issued")
    return token
