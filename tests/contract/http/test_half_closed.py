"""A client that ends its sending gets its answer; one that is gone is noticed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen3vl_edge.contract.http.connection_table import ConnectionLimits
from tests.support.raw_http import GET, Loop, Served, answer, head, serving_http, until_closed
from tests.support.waiting import until

HELD = head("Content-Length: 2", path="/held") + b"ab"


@pytest.fixture(params=["auto", "asyncio"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    with serving_http(ConnectionLimits(), request.param) as found:
        yield found


def half_closed(served: Served, sent: bytes) -> socket.socket:
    connection = served.connect()
    connection.sendall(sent)
    connection.shutdown(socket.SHUT_WR)
    return connection


def test_an_answer_after_the_end_of_sending(served: Served) -> None:
    for sent in (GET, head("Content-Length: 3") + b"abc", head("Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n\r\n"):
        with half_closed(served, sent) as connection:
            assert answer(connection)[0] == 200
            assert until_closed(connection) == b""


def test_requests_in_one_go_are_all_answered(served: Served) -> None:
    with half_closed(served, GET * 3 + GET[:-2]) as connection:
        assert [answer(connection)[0] for _ in range(3)] == [200] * 3
        assert until_closed(connection) == b""
    assert served.requests == 3


def test_an_answer_that_takes_long(served: Served) -> None:
    with half_closed(served, HELD) as connection:
        assert answer(connection)[0] == 100
        served.release.set()
        while (status := answer(connection)[0]) == 100:
            pass
        assert status == 200
        assert until_closed(connection) == b""
    assert served.events == ["begun"]


def test_one_that_leaves_later_is_noticed(served: Served) -> None:
    with half_closed(served, HELD) as connection:
        assert answer(connection)[0] == 100
    until(lambda: served.events == ["begun", "left"])


def test_one_that_leaves_at_once_is_noticed(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(HELD)
        until(lambda: served.events == ["begun"])
    until(lambda: served.events == ["begun", "left"])


def test_one_that_leaves_within_an_answer_is_noticed(served: Served) -> None:
    with half_closed(served, head("Content-Length: 0", path="/endless")) as connection:
        assert answer(connection)[0] == 200
    until(lambda: served.events == ["ended"])


def test_half_a_body_is_no_request(served: Served) -> None:
    with half_closed(served, head("Content-Length: 3") + b"ab") as connection:
        assert until_closed(connection) == b""
    until(lambda: served.events == ["left"])


def test_http_1_0_cannot_be_asked_and_counts_as_gone(served: Served) -> None:
    with half_closed(served, head("Content-Length: 2", path="/held", version="1.0") + b"ab") as connection:
        assert until_closed(connection) == b""
    until(lambda: served.events in ([], ["begun", "left"]))


@pytest.mark.parametrize("loop", ["auto", "asyncio"])
def test_with_tls_the_end_of_sending_is_the_end(loop: Loop, tmp_path: Path) -> None:
    with serving_http(ConnectionLimits(), loop, tmp_path) as served, served.connect() as connection:
        connection.sendall(HELD)
        until(lambda: served.events == ["begun"])
        socket.socket.shutdown(connection, socket.SHUT_WR)
        until(lambda: served.events == ["begun", "left"])
