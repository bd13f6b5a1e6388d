"""Connections that only wait lock nobody out: not by their number, and not where descriptors run out."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from uvicorn.server import ServerState

from qwen3vl_edge.contract.http.connection import HttpConnection
from qwen3vl_edge.contract.http.connection_table import Connection, ConnectionLimits, ConnectionTable
from qwen3vl_edge.contract.machine.descriptors import allow_descriptors
from tests.support.raw_http import GET, Loop, Served, answer, head, is_closed, serving_http
from tests.support.waiting import until

FEW = ConnectionLimits(in_all=8, per_address=4, head_timeout_s=300)
OTHER = "127.0.0.2"


@pytest.fixture(params=[("auto", False), ("asyncio", False), ("auto", True), ("asyncio", True)], ids=str)
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    loop, with_tls = request.param
    with serving_http(FEW, loop, tmp_path if with_tls else None) as found:
        yield found


def test_the_connection_that_waited_longest_makes_room(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(served.plain(OTHER)) for _ in range(20)]  # with TLS: no handshake
        until(lambda: [is_closed(connection) for connection in idle] == [True] * 16 + [False] * 4)
        assert served.get(OTHER) == 200
        assert [is_closed(connection) for connection in idle] == [True] * 17 + [False] * 3
    lines = [record.message for record in caplog.records if "max_connections_per_address = 4" in record.message]
    assert len(lines) == 1, "not one for each"
    assert OTHER in lines[0]


@pytest.mark.parametrize("policy", [uvloop.EventLoopPolicy, asyncio.DefaultEventLoopPolicy])
def test_a_connection_that_made_room_before_it_began_is_not_kept(policy: Callable[[], Any]) -> None:
    """In a flood some are closed so early. uvloop begins the protocol of a closed connection, and never ends it."""

    async def connect() -> int:
        config, state = uvicorn.Config(lambda: None), ServerState()
        config.load()
        evicted = partial(HttpConnection, config, state, {}, ConnectionTable(FEW), Connection(OTHER), 300, print)
        ours, theirs = socket.socketpair()
        with theirs:
            await asyncio.get_running_loop().connect_accepted_socket(evicted, ours)
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(theirs, 1), 10) == b""
        return len(state.connections)

    with asyncio.Runner(loop_factory=policy().new_event_loop) as runner:
        assert runner.run(connect()) == 0


def test_a_flood_locks_nobody_out() -> None:
    with serving_http(ConnectionLimits(in_all=200, per_address=100), "auto") as served, ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(served.plain(OTHER))
        assert served.get() == 200


def test_other_addresses_keep_theirs(served: Served) -> None:
    with ExitStack() as stack, served.connect() as kept:
        for _ in range(20):
            stack.enter_context(served.plain(OTHER))
        kept.sendall(GET)
        assert answer(kept)[0] == 200


def test_a_limit_for_all_addresses(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(served.plain(f"127.0.0.{2 + number // 4}")) for number in range(12)]
        until(lambda: [is_closed(connection) for connection in idle] == [True] * 4 + [False] * 8)
        assert served.get("127.0.0.9") == 200
    assert any("max_connections = 8 is reached" in record.message for record in caplog.records)


def test_what_is_being_answered_is_never_closed(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(served.connect()) for _ in range(4)]
        for connection in held:
            connection.sendall(head("Content-Length: 0", path="/held"))
        until(lambda: served.events == ["begun"] * 4)
        refused = stack.enter_context(served.plain())
        until(lambda: is_closed(refused))
        assert any("all are being answered" in record.message for record in caplog.records)
        assert served.get(OTHER) == 200
        served.release.set()
        assert [answer(connection)[0] for connection in held] == [200] * 4
        assert served.get() == 200, "they wait now for the next request"


def test_a_body_that_does_not_come_makes_room(served: Served) -> None:
    with ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(served.connect())
            connection.sendall(head("Content-Length: 9", path="/held") + b"12345678")
        assert served.get() == 200


@pytest.mark.parametrize("loop", ["auto", "asyncio"])
def test_a_thousand_idle_connections_lock_nobody_out(loop: Loop) -> None:
    if allow_descriptors(3000) < 3000:
        pytest.skip("both ends of a thousand connections need 3,000 open files")
    with serving_http(ConnectionLimits(head_timeout_s=300), loop) as served, ExitStack() as stack:
        for number in range(1000):
            connection = stack.enter_context(served.plain(OTHER))
            connection.sendall(GET[: number % len(GET)])
        assert (served.get(OTHER), served.get()) == (200, 200)


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Take all that this process may open."""
    taken, (soft, hard) = [os.dup(0)], resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, taken[0] + 200), hard))
    try:
        while True:
            try:
                taken.append(os.dup(0))
            except OSError:
                break
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("loop", ["auto", "asyncio"])
def test_where_descriptors_run_out_it_is_logged_and_goes_on(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    with serving_http(FEW, loop) as served, ExitStack() as stack:
        assert served.get() == 200
        late = stack.enter_context(socket.socket())
        late.settimeout(30)
        with no_descriptor_left():
            late.connect(("127.0.0.1", served.port))
            until(lambda: "no connection can be accepted" in caplog.text)
        late.sendall(GET)
        assert answer(late)[0] == 200
        assert served.get() == 200
    assert caplog.text.count("no connection can be accepted (Too many open files)") == 1


@pytest.mark.parametrize("loop", ["auto", "asyncio"])
def test_where_idle_connections_hold_the_descriptors_one_is_closed(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    with serving_http(FEW, loop) as served, ExitStack() as stack:
        idle = [stack.enter_context(served.plain()) for _ in range(3)]
        assert served.get() == 200
        late = stack.enter_context(socket.socket())
        late.settimeout(30)
        with no_descriptor_left():
            late.connect(("127.0.0.1", served.port))
            late.sendall(GET)
            assert answer(late)[0] == 200
            assert is_closed(idle[0])
            assert not is_closed(idle[2])
