"""Which connection is closed for the next one."""

from __future__ import annotations

import pytest

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.http.connection_table import Connection, ConnectionLimits, ConnectionTable
from qwen3vl_edge.contract.http.sender import Proxies, sender_of
from qwen3vl_edge.contract.http.sparse_log import LOG_SECONDS, SparseLog


class Table(ConnectionTable):
    """A table whose connections have names."""

    def __init__(self, in_all: int, per_address: int, *proxies: str) -> None:
        super().__init__(ConnectionLimits(in_all, per_address, trusted_proxies=proxies))
        self.open: dict[str, Connection] = {}

    def connect(self, name: str, address: str = "192.0.2.1") -> bool:
        if not self.make_room_for(address):
            return False
        self.open[name] = Connection(address, lambda: self.open.pop(name))
        self.add(self.open[name])
        return True


def test_the_longest_wait_ends() -> None:
    table = Table(3, 3)
    for name in "abcd":
        assert table.connect(name)
    assert list(table.open) == ["b", "c", "d"]
    table.wait(table.open["b"])  # it made progress
    table.answer(table.open["c"])
    assert table.connect("e")
    assert sorted(table.open) == ["b", "c", "e"]
    assert len(table) == 3


def test_an_address_ends_its_own() -> None:
    table = Table(10, 2)
    for name in "ab":
        table.connect(name, "192.0.2.2")
    for name in "cde":
        table.connect(name)
    assert sorted(table.open) == ["a", "b", "d", "e"]


def test_all_are_answered() -> None:
    table = Table(10, 2)
    for name in "ab":
        table.connect(name)
        table.answer(table.open[name])
    assert not table.connect("c")
    assert table.connect("d", "192.0.2.2")
    table.remove(table.open["a"])
    table.remove(table.open["a"])
    assert len(table) == 2
    assert table.connect("e")


def test_a_proxy_and_a_unix_socket_have_no_limit_of_their_own() -> None:
    table = Table(6, 2, "192.0.2.0/28")
    for name in "abc":
        assert table.connect(name, "192.0.2.9")
        assert table.connect(name.upper(), "")
    assert len(table.open) == 6
    table.connect("d", "")
    assert sorted(table.open) == ["A", "B", "C", "b", "c", "d"]


def test_a_network_of_ipv6_is_one_address_unless_it_is_a_proxys() -> None:
    table = Table(10, 2, "2001:db8:1::7")
    for number in range(3):
        table.connect(f"client {number}", f"2001:db8::{number}")
        table.connect(f"proxy {number}", "2001:db8:1::7")
    assert sorted(table.open) == ["client 1", "client 2", "proxy 0", "proxy 1", "proxy 2"]


def test_a_connection_that_was_removed_does_not_come_back() -> None:
    table = Table(2, 2)
    table.connect("a")
    gone = table.open["a"]
    table.remove(gone)
    table.wait(gone)
    table.answer(gone)
    assert not table.make_room("none is open")
    assert len(table) == 0


def test_proxies_are_addresses_or_networks() -> None:
    proxies = Proxies(["192.0.2.7", "2001:db8::/32"])
    assert "192.0.2.7" in proxies
    assert "2001:db8:1::5" in proxies
    assert "192.0.2.8" not in proxies
    assert "unknown" not in proxies
    for wrong in ("*", "localhost", "192.0.2.1/24", "0.0.0.0/0", "::/0"):
        with pytest.raises(InputError) as refused:
            Proxies([wrong])
        assert refused.value.field == "trusted_proxies"


def test_one_machine_is_one_sender() -> None:
    assert sender_of("2001:db8::1") == sender_of("2001:db8::ffff:1%eth0") != sender_of("2001:db8:0:1::1")


def test_a_log_line_stands_for_many(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    log = SparseLog(clock=lambda: now[0])
    for _ in range(5):
        log.note("kind", "it happened")
    log.note("other", "this too")
    now[0] = LOG_SECONDS
    log.note("kind", "it happened")
    assert caplog.messages == ["it happened", "this too", "it happened (4 more since the last line)"]
