"""Which address a call came from, as far as proxies are believed."""

from __future__ import annotations

import pytest

from orisun_server.core.proxies import Proxies

PROXIES = Proxies(["10.42.0.0/16", "192.168.0.7", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("10.42.1.1", [], "10.42.1.1"),
        ("10.42.1.1", ["198.51.100.1"], "198.51.100.1"),
        # what the client wrote itself stands before what the proxy saw
        ("10.42.1.1", ["1.2.3.4, 198.51.100.1"], "198.51.100.1"),
        ("10.42.1.1", ["1.2.3.4", "198.51.100.1"], "198.51.100.1"),
        ("10.42.1.1", ["1.2.3.4, 198.51.100.1, 192.168.0.7"], "198.51.100.1"),
        ("10.42.1.1", ["10.42.3.3, 192.168.0.7"], "10.42.3.3"),
        ("10.42.1.1", ["1.2.3.4, unknown"], "10.42.1.1"),
        ("10.42.1.1", ["1.2.3.4, unknown, 192.168.0.7"], "192.168.0.7"),
        ("10.42.1.1", ["198.51.100.1:5000"], "198.51.100.1"),
        ("fd00::1", ["[2001:db8::1]:443"], "2001:db8::1"),
        ("fd00::1%eth0", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.42.1.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("10.42.1.1", [",,", "x" * 10_000], "10.42.1.1"),
        ("", ["198.51.100.1"], ""),
    ],
)
def test_the_first_address_that_is_no_believed_proxy_counted_from_here(
    peer: str, forwarded: list[str], client: str
) -> None:
    assert PROXIES.client(peer, forwarded) == client


@pytest.mark.parametrize("network", ["::ffff:10.42.0.0/112", "::ffff:10.42.1.1", "::ffff:0:0/96", "10.42.0.0/16"])
@pytest.mark.parametrize("peer", ["10.42.1.1", "::ffff:10.42.1.1"])
def test_networks_and_peers_may_be_mapped_into_ipv6(network: str, peer: str) -> None:
    proxies = Proxies([network])
    assert proxies.client(peer, ["fd00::7"]) == "fd00::7"
    assert not proxies.trusts("fd00::7")
    assert proxies.trusts("10.43.0.1") == ("/96" in network)


def test_without_proxies_nothing_is_believed() -> None:
    assert not Proxies()
    assert Proxies().client("10.42.1.1", ["198.51.100.1"]) == "10.42.1.1"
