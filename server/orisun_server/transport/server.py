"""The gRPC server: transport, port, TLS, the services on it, and its orderly end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from ..core.proxies import Proxies
from ..core.users import Caller
from ..errors import OrisunError
from ..observation import Watch
from . import checks, health, native, reflection
from .calls import Authenticator, Calls, Service
from .tls import Certificates

if TYPE_CHECKING:
    from ..settings import Settings

#: 10,000 simultaneous calls on a few connections are a burst, not an attack (the bound is the append queue's).
_MAX_STREAMS = 100_000
#: A client that vanished without a word is noticed after both, and its subscriptions end.
_KEEPALIVE_SECONDS, _KEEPALIVE_TIMEOUT_SECONDS = 20, 10
#: Clients may ping this often without being told off.
_CLIENT_PING_SECONDS = 5
#: Seconds for calls that are on their way when grpcio stops: at most, and without one until there seem to be no more.
_LAST_CALLS, _QUIET = 1.0, 0.03

_log = structlog.get_logger(__name__)


class TransportError(OrisunError):
    """The gRPC server cannot be started as it is configured."""


class GrpcServer:
    """Serves services on one port; ``start``, then ``stop``."""

    def __init__(
        self,
        settings: Settings,
        services: Sequence[Service],
        authenticator: Authenticator,
        state: health.HealthState,
        watch: Watch | None = None,
        *,
        denied: Callable[[Caller, str, str], None] = lambda caller, rpc, boundary: None,
    ) -> None:
        """``state`` is what grpc.health.v1 answers; health and reflection are added to ``services`` here.

        ``denied(caller, rpc, boundary)`` notes calls that a role was missing for.
        """
        self._settings = settings
        self._state = state
        self.calls = Calls(
            authenticator,
            settings.admin_boundary,
            watch,
            denied=denied,
            proxies=Proxies(settings.trusted_proxies),
            most_bytes=settings.append_queue_bytes,
        )
        self._services = [*services, Service(health.DESCRIPTOR, health.Health(state), authenticated=False)]
        if settings.grpc_enable_reflection:
            self._services += reflection.services([service.name for service in self._services])
        self._server: grpc.aio.Server | None = None
        #: The port that it listens on, 0 before ``start``.
        self.port = 0
        #: ``grpcio`` or ``native``, "" before ``start``.
        self.transport = ""

    async def start(self) -> None:
        """Listens and serves. Raises TransportError or TlsError, which name the variable to change."""
        settings = self._settings
        self.transport = transport_of(settings)
        options = _options(settings.grpc_max_request_bytes)
        # Any: grpc-stubs lag behind grpcio and do not know registered methods
        server: Any = native.server(options) if self.transport == "native" else grpc.aio.server(options=options)
        for service in self._services:
            more = {"write_all": native.write_all} if self.transport == "native" else {}
            server.add_registered_method_handlers(service.name, self.calls.handlers(service, **more))
        address = f"{_host(settings.grpc_host)}:{settings.grpc_port}"
        certificates = Certificates(checks.tls_files(settings)) if settings.grpc_tls_enabled else None
        try:
            if certificates is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, certificates.credentials())
        except RuntimeError:
            raise TransportError(
                f"cannot listen on {address} (ORISUN_GRPC_HOST, ORISUN_GRPC_PORT): the port is taken, perhaps by "
                "another server, or the address is not one of this machine"
            ) from None
        await server.start()
        self._server = server
        _log.info(
            "gRPC server started",
            address=f"{_host(settings.grpc_host)}:{self.port}",
            transport=self.transport,
            tls="mutual" if settings.grpc_tls_enabled and settings.grpc_tls_client_auth_required
            else "on" if settings.grpc_tls_enabled else "off",
        )  # fmt: skip

    async def stop(self, grace: float) -> None:
        """Takes no more calls, ends subscriptions with UNAVAILABLE and lets unary calls finish, for ``grace`` seconds
        at most."""
        self._state.set_stopping()
        await self.close(grace)

    async def close(self, grace: float) -> None:
        """The same, without a word to health: another server takes the port over."""
        self.calls.drain()
        if self._server is None:
            return
        began = time.monotonic()
        if self.transport == "grpcio":
            await self._last_calls(min(grace / 2, _LAST_CALLS))
        else:
            self.calls.refuse()
        stopping = asyncio.ensure_future(self._server.stop(max(0.0, grace - (time.monotonic() - began))))
        # its clients are told to leave the connection (GOAWAY) before they are told to call again
        await asyncio.sleep(0)
        self.calls.refuse()
        await stopping

    async def _last_calls(self, longest: float) -> None:
        """Waits until no more calls come, for so many seconds at most.

        grpcio ends calls that it has received and not yet handed over when it stops, and those that come until a client
        knows, with CANCELLED (grpc/grpc issue 41785), which no client repeats. While their calls wait most clients send
        no others.
        """
        until, quiet = time.monotonic() + longest, 0
        # twice in a row: the loop may have been held up meanwhile
        while quiet < 2 and time.monotonic() < until:
            before = self.calls.late
            await asyncio.sleep(_QUIET)
            quiet = quiet + 1 if self.calls.late == before else 0


def transport_of(settings: Settings) -> str:
    """``grpcio`` or ``native``. Raises TransportError where the settings contradict each other."""
    for variable, text in checks.contradictions(settings):
        raise TransportError(f"{variable}: {text}")
    if settings.grpc_transport == "auto":
        return "native" if native.is_installed() and not settings.grpc_tls_enabled else "grpcio"
    return settings.grpc_transport


def _options(max_request_bytes: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", max_request_bytes),
        ("grpc.max_send_message_length", -1),
        # one limit; grpcio refuses calls at random between two
        ("grpc.max_metadata_size", native.MAX_HEADER_BYTES),
        ("grpc.absolute_max_metadata_size", native.MAX_HEADER_BYTES),
        ("grpc.max_concurrent_streams", _MAX_STREAMS),
        # grpcio's core would cancel calls of a burst that the event loop has not seen yet, from 1,000 on
        ("grpc.server.max_pending_requests", _MAX_STREAMS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_STREAMS),
        # two servers on one port would share its connections, and neither would say so
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", _KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_SECONDS * 1000),
        # of gRPC's own pings, which keepalive waits for where one is under way; a minute by default
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _CLIENT_PING_SECONDS * 1000),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
