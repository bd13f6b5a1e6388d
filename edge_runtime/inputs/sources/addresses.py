"""Which IP addresses are public: a URL from a client must not lead into the device's own network.

Sources: IANA's IPv4 and IPv6 Special-Purpose Address Registries; RFC 4291 (2000::/3 is all of IPv6 that is assigned for
global unicast), RFC 6052 and 8215 (NAT64), RFC 3056 and 7526 (6to4), RFC 4380 (Teredo), RFC 5214 (ISATAP), RFC 9637.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")
_ISATAP = (0x00005EFE, 0x02005EFE)  # the upper half of an interface identifier; the IPv4 address is the lower
# Not public, whatever the `ipaddress` of this Python says: its releases follow the registries at a distance.
_PRIVATE_IPV6 = (
    IPv6Network("2001::/32"),  # Teredo: leads to the IPv4 address of a host behind a relay of its sender's choice
    IPv6Network("2001:db8::/32"),  # documentation
    IPv6Network("3fff::/20"),  # documentation
)
_PRIVATE_IPV4 = (
    IPv4Network("192.0.0.0/24"),  # IETF protocol assignments
    IPv4Network("192.88.99.0/24"),  # relays of 6to4, deprecated
)


def is_public(address: str) -> bool:
    """Whether an address is globally reachable; where an IPv6 address leads to an IPv4 address, that one counts."""
    parsed = ip_address(address.split("%")[0])
    return _public_ipv4(parsed) if isinstance(parsed, IPv4Address) else _public_ipv6(parsed)


def _public_ipv4(address: IPv4Address) -> bool:
    return address.is_global and not address.is_multicast and not any(address in network for network in _PRIVATE_IPV4)


def _public_ipv6(address: IPv6Address) -> bool:
    value = int(address)
    if address in _MAPPED or address in _NAT64:
        return _public_ipv4(IPv4Address(value & 0xFFFFFFFF))
    if address not in _GLOBAL_UNICAST or any(address in network for network in _PRIVATE_IPV6):
        return False
    if address in _6TO4:
        return _public_ipv4(IPv4Address(value >> 80 & 0xFFFFFFFF))
    if (value >> 32 & 0xFFFFFFFF) in _ISATAP and not _public_ipv4(IPv4Address(value & 0xFFFFFFFF)):
        return False
    return address.is_global
