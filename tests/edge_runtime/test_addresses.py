"""Which addresses a client's URL may lead to. Right values: IANA's special-purpose registries and their RFCs."""

from __future__ import annotations

import pytest

from qwen3vl_edge.edge_runtime.inputs.sources.addresses import is_public

PUBLIC = [
    "93.184.215.14",
    "2606:2800:21f:cb07:6820:80da:af6b:8b2c",
    "::ffff:93.184.215.14",  # mapped, RFC 4291
    "64:ff9b::5db8:d70e",  # NAT64 of 93.184.215.14, RFC 6052
    "2002:5db8:d70e::1",  # 6to4 of the same, RFC 3056
]
PRIVATE = [
    *("0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.0.0.8", "192.0.2.1"),
    *("192.88.99.1", "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1"),
    "255.255.255.255",
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00::1", "ff02::1", "100::1", "2001:db8::1", "3fff::1"),
    "5f00::1",  # segment routing, RFC 9602
    *("::ffff:10.0.0.1", "::ffff:127.0.0.1"),
    "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
    "64:ff9b::a9fe:a9fe",  # of 169.254.169.254
    "64:ff9b:1::5db8:d70e",  # NAT64 within a network, RFC 8215
    "2002:7f00:1::1",  # 6to4 of 127.0.0.1
    "2002:c0a8:1::1",  # of 192.168.0.1
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo, the example of RFC 4380
    "fec0::1",  # site-local, deprecated by RFC 3879
    "::10.0.0.1",  # IPv4-compatible, deprecated by RFC 4291
    "::93.184.215.14",
    "::ffff:0:10.0.0.1",  # IPv4-translated, RFC 2765
    "2606:2800::5efe:10.0.0.1",  # ISATAP of 10.0.0.1, RFC 5214
    "2606:2800::200:5efe:10.0.0.1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_private(address: str) -> None:
    assert not is_public(address)
