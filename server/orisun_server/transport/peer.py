"""Where a call comes from and with which certificate, as both transports tell it."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import grpc

from ..core.proxies import Proxies

_COMMON_NAME, _ALTERNATIVE_NAME = "x509_common_name", "x509_subject_alternative_name"
_FORWARDED = "x-forwarded-for"


def peer_address(context: grpc.aio.ServicerContext[Any, Any], proxies: Proxies) -> str:
    """The IP address that a call came from, beyond the proxies that are believed; "" where the connection has none."""
    peer = _connected(context)
    if not proxies:
        return peer
    metadata = context.invocation_metadata() or ()
    return proxies.client(peer, [str(value) for key, value in metadata if key == _FORWARDED])


def _connected(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The IP address at the other end of the connection.

    grpcio writes ``ipv4:10.0.0.1:5000`` or ``ipv6:%5B::1%5D:5000``, the native transport ``10.0.0.1:5000``.
    """
    text = unquote(str(context.peer() or ""))
    for kind in ("ipv4:", "ipv6:"):
        text = text.removeprefix(kind)
    if text.startswith("unix:"):
        return ""
    return text.rpartition(":")[0].strip("[]") or text


def certificate_names(context: grpc.aio.ServicerContext[Any, Any]) -> list[str]:
    """The names in the client's certificate, which the handshake has checked: the common name first, "" where it has
    none, then the alternative ones (DNS names, URIs such as SPIFFE's). Nothing without a certificate."""
    properties = context.auth_context() or {}
    # gRPC gives an empty common name where there is none
    values = [*properties.get(_COMMON_NAME, ()), *properties.get(_ALTERNATIVE_NAME, ())]
    return [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values]
