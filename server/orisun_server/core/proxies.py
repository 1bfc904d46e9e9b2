"""Where a call came from when proxies stand before the server: what X-Forwarded-For says, as far as it is believed."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Bits before the IPv4 address of one that is mapped into IPv6 (``::ffff:0:0/96``, RFC 4291, 2.5.5.2).
_MAPPED_BITS = 96


class Proxies:
    """The proxies that are believed (ORISUN_TRUSTED_PROXIES); without any, a call comes from its connection's end."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        """``networks`` are addresses or networks, such as ``10.0.0.7`` or ``10.42.0.0/16``; of IPv4 ones also as they
        are mapped into IPv6. Raises ValueError."""
        self._networks = [_network(text) for text in networks]

    def __bool__(self) -> bool:
        return bool(self._networks)

    def trusts(self, peer: str) -> bool:
        """Whether the connection comes from a proxy that is believed."""
        address = _parse(peer) if self._networks else None
        return address is not None and any(address in network for network in self._networks)

    def client(self, peer: str, forwarded: Iterable[str]) -> str:
        """The address that a call came from: of the connection, or the one that the outermost believed proxy saw.

        ``forwarded`` are the values of the X-Forwarded-For headers, in order. Each proxy adds at the end, so they are
        read from there: what stands before the first address that is no believed proxy, the client may have made up.
        """
        if not self.trusts(peer):
            return peer
        for hop in reversed([hop for value in forwarded for hop in value.split(",")]):
            address = _parse(hop)
            if address is None:
                break
            peer = str(address)
            if not self.trusts(peer):
                break
        return peer


def _network(text: str) -> _Network:
    network = ipaddress.ip_network(text.strip(), strict=False)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < _MAPPED_BITS:
        return network
    return ipaddress.ip_network((mapped, network.prefixlen - _MAPPED_BITS))


def _parse(text: str) -> _Address | None:
    """The address of ``10.0.0.1``, ``10.0.0.1:5000``, ``fe80::1%eth0`` or ``[::1]:5000``, an IPv4 one if it is mapped
    into IPv6; None for anything else."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
