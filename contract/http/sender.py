"""The address that a limit applies to, and the proxies that are believed about it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from qwen3vl_edge.contract.errors import InputError

TRUSTED_PROXIES = "trusted_proxies"


@lru_cache(4096)  # parsing takes longer than all else that is done for a connection over the limits
def sender_of(address: str) -> str:
    """The address that a limit applies to: for IPv6 the /64 prefix, because one machine can use all of it."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # a proxy may send any text
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)


class Proxies:
    """Addresses and networks of proxies.

    Raises:
        InputError: a text is neither an address nor a network, or it is a network of all addresses.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._networks = tuple(_network(name) for name in names)

    def __contains__(self, address: str) -> bool:
        if not self._networks:
            return False
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)


def _network(name: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        network = ipaddress.ip_network(name)
    except ValueError:
        expected = "an address or a network, such as 10.0.0.7 or 10.0.0.0/24"
        raise InputError(
            "no address of a proxy", field=TRUSTED_PROXIES, expected=expected, got=repr(name)[:80]
        ) from None
    if network.prefixlen == 0:
        raise InputError(
            "a network of all addresses lets every client name its own",
            field=TRUSTED_PROXIES,
            expected="the proxy's address",
            got=name,
        )
    return network
