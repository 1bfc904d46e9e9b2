"""An HTTP server in the server's own event loop (uvicorn), with the bounds that a public port needs.

uvicorn waits for a request as long as the client likes; here a connection that has not sent a whole head in time is
closed, and so is one that keeps a body back (a slow loris) or does not read its answers. There is a limit to how many
are open, and to how many of one address.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from pathlib import Path
from typing import Any

import h11
import structlog
import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...core.proxies import Proxies
from ...errors import OrisunError
from ...tasks import end

_log = structlog.get_logger(__name__)

#: Seconds that a client gets to send a request, and that an idle connection is kept.
_REQUEST_TIME, _KEEP_ALIVE = 10.0, 30
_MOST_CONNECTIONS = 500
#: Of one address; a proxy that is believed may have them all, for it brings many.
_MOST_OF_PEER = 100
#: Seconds after which a client that takes nothing of what it has asked for is left, and between two looks.
_PATIENCE, _LOOK = 30.0, 5.0
#: What is answered however many connections others hold open: else they could have Kubernetes restart the server.
_PROBES = frozenset({"/healthz", "/readyz"})
_MOST_HEAD_BYTES = 32 * 1024
#: Seconds between two looks at whether the TLS files have changed.
_TLS_LOOK = 5.0


class PortTaken(OrisunError):
    """The port cannot be listened on."""


class WebTlsError(OrisunError):
    """The TLS files cannot be used."""


class HttpServer:
    """Serves one ASGI application on one port; ``start``, then ``stop``."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        variable: str,
        tls: tuple[Path, Path] | None = None,
        any_port: bool = False,
        proxies: Proxies | None = None,
    ) -> None:
        """``variable`` names the port in messages; ``tls`` are certificate and key, PEM. With ``any_port`` a free one
        is taken where the port is not free. ``proxies`` may have more connections than others."""
        self._host, self._wanted, self._variable, self._any_port = host, port, variable, any_port
        self._tls = tls
        self._app = app
        self._proxies = proxies
        self._config = uvicorn.Config(
            self._bounded,
            interface="asgi3",
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            # what clients do wrong is told to them
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            h11_max_incomplete_event_size=_MOST_HEAD_BYTES,
        )
        self._server = uvicorn.Server(self._config)
        self._tasks: list[asyncio.Task[None]] = []
        #: The port that it listens on, 0 before ``start``.
        self.port = 0

    @property
    def scheme(self) -> str:
        return "https" if self._tls else "http"

    async def start(self) -> None:
        """Raises PortTaken or WebTlsError, which say what to change."""
        context = _tls_context(*self._tls) if self._tls else None
        listener = self._bind()
        self.port = listener.getsockname()[1]
        self._config.load()
        self._config.ssl = context
        self._server.lifespan = self._config.lifespan_class(self._config)
        await self._server.startup(sockets=[listener])
        self._tasks.append(asyncio.create_task(self._leave_stalled(), name="admin-stalled"))
        if context is not None and self._tls is not None:
            self._tasks.append(asyncio.create_task(_rotate(context, *self._tls), name="admin-tls"))

    async def stop(self, grace: float = 1.0) -> None:
        """Takes no more connections and lets requests finish for ``grace`` seconds."""
        await end(self._tasks)
        for server in getattr(self._server, "servers", ()):
            server.close()
        state = self._server.server_state
        for connection in list(state.connections):
            connection.shutdown()
        if state.tasks:
            await asyncio.wait(set(state.tasks), timeout=grace)
            await end(list(state.tasks))
        for connection in list(state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.close()

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") in _PROBES or self._has_room(scope["client"][0] if scope.get("client") else ""):
            await self._app(scope, receive, send)
            return
        refusal = Response("too many connections are open; try again\n", 503, {"connection": "close"}, "text/plain")
        await refusal(scope, receive, send)

    def _has_room(self, peer: str) -> bool:
        connections = self._server.server_state.connections
        if len(connections) <= min(_MOST_OF_PEER, _MOST_CONNECTIONS):
            return True
        clients = (one.client for one in connections if isinstance(one, _Protocol))
        by_peer = Counter(client[0] if client else "" for client in clients)
        # connections that one address has too many of, and that may not even ask for anything, count for no others
        for other in by_peer:
            if not self._is_trusted(other):
                by_peer[other] = min(by_peer[other], _MOST_OF_PEER + (other == peer))
        return by_peer.total() <= _MOST_CONNECTIONS and (self._is_trusted(peer) or by_peer[peer] <= _MOST_OF_PEER)

    def _is_trusted(self, peer: str) -> bool:
        return self._proxies is not None and self._proxies.trusts(peer)

    async def _leave_stalled(self) -> None:
        """Ends connections whose client has not read for a while: also closed ones wait for it, for ever."""
        # transport -> bytes that waited for the client when it last took some, and when that was
        seen: dict[asyncio.Transport, tuple[int, float]] = {}
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK)
            now, before, seen = loop.time(), seen, {}
            for connection in list(self._server.server_state.connections):
                transport: asyncio.Transport = connection.transport
                if (waiting := transport.get_write_buffer_size()) == 0:
                    continue
                least, since = before.get(transport, (waiting, now))
                if waiting >= least and now - since >= _PATIENCE:
                    transport.abort()
                    continue
                seen[transport] = (least, since) if waiting >= least else (waiting, now)

    def _bind(self) -> socket.socket:
        try:
            return _listener(self._host, self._wanted)
        except OSError as problem:
            address = f"{self._host}:{self._wanted}"
            if not self._any_port:
                raise PortTaken(
                    f"cannot listen on {address} ({self._variable}): {_why(problem)}; stop what uses it, or set "
                    f"{self._variable} to another port (0 takes a free one)"
                ) from None
            _log.warning("the port is taken; a free one is used", variable=self._variable, address=address)
            return _listener(self._host, 0)


class _Protocol(H11Protocol):
    """Closes connections whose client keeps a request back."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watchdog: asyncio.TimerHandle | None = None
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._relax()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        state = self.conn.their_state
        if state is h11.SEND_BODY or (state is h11.IDLE and self._has_begun()):
            self._expect()
        else:
            self._relax()

    def _has_begun(self) -> bool:
        """Whether part of a head has arrived."""
        return bool(self.conn.trailing_data[0])

    def _expect(self) -> None:
        """The rest of the request has to come in time; more of it does not buy more time."""
        if self._watchdog is None:
            self._watchdog = asyncio.get_running_loop().call_later(_REQUEST_TIME, self._give_up)

    def _relax(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _give_up(self) -> None:
        self._watchdog = None
        self.transport.close()


def _listener(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    plain = host.strip("[]")
    family = socket.AF_INET6 if ":" in plain else socket.AF_INET
    listener = socket.socket(family)
    try:
        # a server that starts again at once finds its port; it is still refused while another one listens
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((plain, port))
        listener.listen(128)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _why(problem: OSError) -> str:
    return problem.strerror or type(problem).__name__


def _tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, certificate, key)
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        context.load_cert_chain(certificate, key)
    except OSError as problem:  # ssl.SSLError is one
        raise WebTlsError(
            f"ORISUN_GRPC_TLS_CERT_FILE={certificate} and ORISUN_GRPC_TLS_KEY_FILE={key} cannot be used for the admin "
            f"page: {_why(problem)}"
        ) from None


async def _rotate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """New connections get what the files hold now; unusable files leave what is in use."""
    known = _stamps(certificate, key)
    while True:
        await asyncio.sleep(_TLS_LOOK)
        stamps = _stamps(certificate, key)
        if stamps == known:
            continue
        try:
            _tls_context(certificate, key)  # a rotation in progress must not spoil the context in use
            _load(context, certificate, key)
        except WebTlsError as problem:
            _log.warning("changed TLS files cannot be used; keeping the ones in use", problem=str(problem))
            continue
        known = stamps


def _stamps(*paths: Path) -> list[Any]:
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return found
