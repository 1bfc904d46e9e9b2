"""Addresses of servers and networks as settings write them, and texts that such addresses stand in. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr

from orisun_server.setting_types import List, entries

#: A name or an address of either family; no bracket stands around it any more.
_HOST = re.compile(r"[\w.:-]+")
#: What stands between the scheme of an address and its host.
_USERINFO = re.compile(r"//[^\s\",]+@")


def check_addresses(addresses: Iterable[str], schemes: Sequence[str], *, port_needed: bool = False) -> None:
    """Raises ValueError unless each is the address of a server: ``scheme://user:password@host:port``.

    Scheme, user and password may be missing. The error tells which one it is by its number, and quotes nothing of it:
    there may be a password in any part of an address that is written wrong.
    """
    for number, address in enumerate(addresses, 1):
        if flaw := _flaw(address, schemes, port_needed):
            raise ValueError(
                f"address {number} {flaw}; write {schemes[0]}://host:port, or {schemes[0]}://user:password@host:port"
                " with / ? # @ % and , of the password percent-encoded"
            )


def _flaw(address: str, schemes: Sequence[str], port_needed: bool) -> str:
    """What is wrong with an address, "" for nothing."""
    # where these stand, users and passwords could not be masked
    if re.search(r"[\s\"]", address):
        return "has a blank or a quotation mark"
    try:
        parts = urlsplit(address if "://" in address else f"{schemes[0]}://{address}")
    except ValueError:  # of brackets that do not fit
        return "has no valid host"
    if parts.scheme not in schemes:
        return f"does not begin with {' or '.join(f'{scheme}://' for scheme in schemes)}"
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        return "has more after its host and port"
    if not _HOST.fullmatch(parts.hostname or ""):
        return "has no valid host"
    try:
        port = parts.port
    except ValueError:
        return "has no valid port"
    return "has no port" if port_needed and port is None else ""


def _check_servers(value: SecretStr) -> SecretStr:
    addresses = entries(value.get_secret_value())
    if not addresses:
        raise ValueError("names no server; write nats://user:password@host:4222, or unset it to embed one")
    check_addresses(addresses, ("nats", "tls"))
    return value


def _check_routes(addresses: tuple[str, ...]) -> tuple[str, ...]:
    check_addresses(addresses, ("nats", "nats-route"), port_needed=True)
    return tuple(address if "://" in address else f"nats://{address}" for address in addresses)


def _check_endpoint(url: str) -> str:
    scheme, _, rest = url.rpartition("://")
    # a path, which some copy from OTLP over HTTP, means nothing to gRPC
    check_addresses([f"{scheme or 'http'}://{rest.partition('/')[0]}"] if url else [], ("http", "https"))
    return url


def _check_networks(networks: tuple[str, ...]) -> tuple[str, ...]:
    for network in networks:
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError:
            raise ValueError(f'"{network}" is no address or network, such as 10.0.0.7 or 10.42.0.0/16') from None
    return networks


#: NATS servers, comma-separated; secret, since credentials stand in them.
NatsServers = Annotated[SecretStr, AfterValidator(_check_servers)]
#: Where the NATS servers of a cluster find each other.
Routes = Annotated[List, AfterValidator(_check_routes)]
#: Of a collector that takes OTLP over gRPC; "" for none.
OtlpEndpoint = Annotated[str, AfterValidator(_check_endpoint)]
#: Addresses of machines, or networks as 10.42.0.0/16.
Networks = Annotated[List, AfterValidator(_check_networks)]


def mask_userinfo(text: str) -> str:
    """A text without the users and passwords of the addresses in it."""
    return _USERINFO.sub("//***@", text)
