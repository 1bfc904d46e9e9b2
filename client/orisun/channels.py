"""How to reach servers: addresses, TLS, and the settings of gRPC's channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import refuse

_DEFAULT_PORT = 5005
#: A name that stands for several addresses (a headless Service, say) is balanced over all of them.
_SERVICE_CONFIG = '{"loadBalancingConfig":[{"round_robin":{}}]}'
#: A server that is back is found soon, not after gRPC's two minutes.
_FIRST_RECONNECT_MS, _LONGEST_RECONNECT_MS = 100, 2_000

#: Authorities, key and certificate, as PEM.
Pems = tuple[bytes | None, bytes | None, bytes | None]


@dataclass(frozen=True, slots=True)
class TLS:
    """How to speak TLS. Certificates and keys are PEM, as bytes or as the path of a file. Files are read again now and
    then (``refresh`` of ``connect``), so that renewed certificates are used without a new client.

    ``TLS()`` trusts the certificate authorities that gRPC brings along.
    """

    #: The authorities whose servers to trust.
    ca: bytes | str | Path | None = None
    #: The client's own certificate (with its chain) and key, for servers that ask for one.
    certificate: bytes | str | Path | None = None
    key: bytes | str | Path | None = field(default=None, repr=False)
    #: The name that the server's certificate is to have, where it is not the one connected to.
    server_name: str | None = None

    def read(self) -> Pems:
        """Authorities, key and certificate as they are now. Raises InvalidArgument, which names the file that cannot be
        read."""
        if (self.certificate is None) != (self.key is None):
            refuse("TLS: a client's certificate and its key go together; give both or neither")
        return _pem("ca", self.ca), _pem("key", self.key), _pem("certificate", self.certificate)

    @property
    def is_of_files(self) -> bool:
        """Whether any of it may change."""
        return any(isinstance(one, str | Path) for one in (self.ca, self.certificate, self.key))


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


def options_of(tls: TLS | None, keepalive: float) -> list[tuple[str, Any]]:
    """The settings of a channel; ``keepalive`` in seconds, 0 for none."""
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
