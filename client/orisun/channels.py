"""Connections: addresses, TLS, keepalive, and which connection takes the next call."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import grpc

from orisun_api import admin_pb2_grpc, eventstore_pb2_grpc

from .errors import OrisunError, refuse

_DEFAULT_PORT = 5005
#: A name that stands for several addresses (a headless Service, say) is balanced over all of them.
_SERVICE_CONFIG = '{"loadBalancingConfig":[{"round_robin":{}}]}'
#: A server that is back is found soon, not after gRPC's two minutes.
_FIRST_RECONNECT_MS, _LONGEST_RECONNECT_MS = 100, 2_000
_DOWN = grpc.ChannelConnectivity.TRANSIENT_FAILURE


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


@dataclass(frozen=True, slots=True)
class TLS:
    """How to speak TLS. Certificates and keys are PEM, as bytes or as the path of a file.

    ``TLS()`` trusts the certificate authorities that gRPC brings along.
    """

    #: The authorities whose servers to trust.
    ca: bytes | str | Path | None = None
    #: The client's own certificate (with its chain) and key, for servers that ask for one.
    certificate: bytes | str | Path | None = None
    key: bytes | str | Path | None = field(default=None, repr=False)
    #: The name that the server's certificate is to have, where it is not the one connected to.
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises InvalidArgument, which names the file that cannot be read."""
        if (self.certificate is None) != (self.key is None):
            refuse("TLS: a client's certificate and its key go together; give both or neither")
        return grpc.ssl_channel_credentials(
            _pem("ca", self.ca), _pem("key", self.key), _pem("certificate", self.certificate)
        )


def addresses(target: str | Sequence[str]) -> list[str]:
    """The addresses that ``connect`` was given: ``host``, ``host:port``, several of them, or gRPC's own names
    (``dns:///host:port``). The port is 5005 where it is not given. Raises InvalidArgument."""
    given = target.split(",") if isinstance(target, str) else list(target)
    found = [_address(item.strip()) for item in given if item.strip()]
    if not found:
        refuse('no address to connect to; give "host:port", or several of them')
    return found


def _address(text: str) -> str:
    if "://" in text and not text.startswith("dns://"):
        refuse(f'"{text}" is no gRPC address; leave the scheme out, like "localhost:5005", and give tls=True for TLS')
    if text.startswith(("dns:", "ipv4:", "ipv6:", "unix:")):
        return text
    host, colon, port = text.rpartition(":")
    if text.startswith("[") and text.endswith("]"):
        host, port = text, str(_DEFAULT_PORT)
    elif text.count(":") > 1 and not text.startswith("["):
        host, port = f"[{text}]", str(_DEFAULT_PORT)
    elif not colon:
        host, port = text, str(_DEFAULT_PORT)
    if not port.isdigit() or not 0 < int(port) < 65536 or not host:
        refuse(f'"{text}" is no address; write it like "localhost:5005"')
    return f"{host}:{port}"


class Endpoint:
    """One address, its connection, and the stubs of both services on it."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None, options: list[tuple[str, Any]]):
        self.address = address
        scheme, _, several = address.partition(":")
        if scheme in ("ipv4", "ipv6") and "," in several:
            # gRPC would name the server by the whole list, which is no host name to an HTTP/2 server
            options = [*options, ("grpc.default_authority", several.partition(",")[0])]
        self.channel = (
            grpc.aio.insecure_channel(address, options=options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=options)
        )
        # Any: the generated stubs are typed for synchronous channels
        self.events: Any = eventstore_pb2_grpc.EventStoreStub(self.channel)  # type: ignore[no-untyped-call]
        self.admin: Any = admin_pb2_grpc.AdminStub(self.channel)  # type: ignore[no-untyped-call]
        _Process.used = True
        _Process.endpoints.add(self)


class Endpoints:
    """Connections to all addresses of a client; calls go round them, past those that are down.

    Connections are made at the first call, in its event loop.
    """

    def __init__(self, target: str | Sequence[str], tls: TLS | None, keepalive: float) -> None:
        self._addresses = addresses(target)
        self._credentials = tls.credentials() if tls is not None else None
        self._options = _options(tls, keepalive)
        self._endpoints: list[Endpoint] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next = 0

    @property
    def addresses(self) -> str:
        """The addresses, for messages."""
        return ", ".join(self._addresses)

    def pick(self) -> Endpoint:
        """The one whose turn it is; one that could not be reached lately is passed over while there is another.

        Raises OrisunError in another event loop than that of the first call, and after a fork.
        """
        self._check_place()
        if not self._endpoints:
            self._endpoints = [Endpoint(address, self._credentials, self._options) for address in self._addresses]
        for _ in self._endpoints:
            endpoint = self._endpoints[self._next % len(self._endpoints)]
            self._next += 1
            # asking connects it again, so that it gets its turn when it is back
            if len(self._endpoints) == 1 or endpoint.channel.get_state(try_to_connect=True) is not _DOWN:
                return endpoint
        return endpoint

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

    async def close(self) -> None:
        """Closes the connections; calls on them end."""
        if _Process.forked or (self._loop is not None and self._loop.is_closed()):
            self._endpoints = []
        for endpoint in self._endpoints:
            await endpoint.channel.close(None)


def _options(tls: TLS | None, keepalive: float) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", _SERVICE_CONFIG),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MS),
        ("grpc.min_reconnect_backoff_ms", _LONGEST_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", _LONGEST_RECONNECT_MS),
        # clients of one process do not share a connection, and not its failures
        ("grpc.use_local_subchannel_pool", 1),
        # retries are this library's: gRPC's own know nothing of which calls are safe to repeat
        ("grpc.enable_retries", 0),
    ]
    if keepalive > 0:
        # a subscription on a connection that is silently dead is noticed after both
        milliseconds = max(int(keepalive * 1000), 5_000)
        options += [
            ("grpc.keepalive_time_ms", milliseconds),
            ("grpc.keepalive_timeout_ms", min(milliseconds, 10_000)),
            # a ping that measures the connection is answered as late; its own minute would keep a probe waiting
            ("grpc.http2.ping_timeout_ms", min(milliseconds, 10_000)),
            ("grpc.http2.max_pings_without_data", 0),
        ]
    if tls is not None and tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def _pem(what: str, given: bytes | str | Path | None) -> bytes | None:
    if given is None or isinstance(given, bytes):
        return given
    try:
        return Path(given).read_bytes()
    except OSError as problem:
        refuse(f"TLS {what}: {given} cannot be read: {problem.strerror}")
