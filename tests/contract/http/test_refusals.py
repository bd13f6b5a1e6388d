"""A refusal reaches its client, and ends the connection before the body has cost anything."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen3vl_edge.contract.http.connection_table import ConnectionLimits
from tests.support.raw_http import GET, Served, answer, answer_while_sending, head, serving_http, until_closed
from tests.support.waiting import until

LIMITS = ConnectionLimits()
ENDLESS = 10**12


@pytest.fixture(params=[("auto", False), ("asyncio", False), ("auto", True), ("asyncio", True)], ids=str)
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    loop, with_tls = request.param
    with serving_http(LIMITS, loop, tmp_path if with_tls else None) as found:
        yield found


@pytest.fixture(scope="module", params=["auto", "asyncio"])
def shared(request: pytest.FixtureRequest) -> Iterator[Served]:
    """A server for many requests, each in a connection of its own."""
    with serving_http(LIMITS, request.param) as found:
        yield found


class Sender(threading.Thread):
    """Sends without end, until the connection ends."""

    def __init__(self, connection: socket.socket, piece: bytes) -> None:
        super().__init__(daemon=True)
        self._connection, self._piece = connection, piece
        self.sent = 0

    def run(self) -> None:
        try:
            while True:
                self._connection.sendall(self._piece)
                self.sent += len(self._piece)
        except OSError:
            pass


@pytest.mark.parametrize("framing", [f"Content-Length: {ENDLESS}", "Transfer-Encoding: chunked"])
def test_the_rest_of_a_body_is_not_swallowed(served: Served, framing: str) -> None:
    piece = bytes(2**16)
    if "chunked" in framing:
        piece = b"%x\r\n" % len(piece) + piece + b"\r\n"
    with served.plain() as plain:
        connection = plain if served.context is None else served.context.wrap_socket(plain, server_hostname="localhost")
        with connection:
            connection.sendall(head(framing, path="/refused"))
            status, headers, body = answer_while_sending(connection, piece)
            assert (status, body) == (401, {"refused": True})
            assert headers["connection"] == "close"
    assert served.get() == 200


def test_what_follows_the_last_answer_is_not_swallowed(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(GET.replace(b"Host", b"Connection: close\r\nHost"))
        assert answer(connection)[0] == 200
        sender = Sender(connection, bytes(2**16))
        sender.start()
        sender.join(20)
        assert not sender.is_alive(), f"{sender.sent} bytes were taken"


def test_one_that_sends_all_before_it_reads_is_told_too(served: Served) -> None:
    """Its system has the answer before the connection is reset."""
    with served.connect() as connection:
        connection.sendall(head(f"Content-Length: {ENDLESS}", path="/refused"))
        until(lambda: served.requests == 1)
        Sender(connection, bytes(2**16)).run()
        assert answer(connection)[0] == 401


def test_a_client_that_waits_for_its_turn_reads_the_end(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(head("Content-Length: 1000", "Expect: 100-continue", path="/refused"))
        status, headers, _ = answer(connection)
        assert (status, headers["connection"]) == (401, "close")
        assert until_closed(connection) == b""


def test_a_refusal_after_the_body_keeps_the_connection(served: Served) -> None:
    with served.connect() as connection:
        for _ in range(2):
            connection.sendall(head("Content-Length: 4", path="/refused") + b"body")
            status, headers, _ = answer(connection)
            assert status == 401
            assert "connection" not in headers
        connection.sendall(GET)
        assert answer(connection)[0] == 200


SECOND = b"GET /smuggled HTTP/1.1\r\nHost: here\r\n\r\n"
CHUNKED, LENGTH = "Transfer-Encoding: chunked", "Content-Length: 5"
MALFORMED: list[tuple[str, bytes, int, str]] = [
    ("length, then chunks", head(LENGTH, CHUNKED) + b"0\r\n\r\n" + SECOND, 400, "bad_length"),
    ("chunks, then length", head(CHUNKED, LENGTH) + b"0\r\n\r\n" + SECOND, 400, "bad_length"),
    ("chunks in HTTP/1.0", head(CHUNKED, version="1.0") + b"0\r\n\r\n" + SECOND, 400, "bad_length"),
    ("two lengths", head(LENGTH, "Content-Length: 6") + b"12345", 400, "bad_http"),
    ("two lengths in a line", head("Content-Length: 5, 6") + b"12345", 400, "bad_http"),
    ("another coding", head("Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", 400, "bad_http"),
    ("two codings", head(CHUNKED, CHUNKED) + b"0\r\n\r\n", 400, "bad_http"),
    ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_http"),
    ("a head that grows", b"GET / HTTP/1.1\r\nHost: here\r\n" + b"X: y\r\n" * 4000, 431, "head_too_large"),
    ("a long head at once", head(*["X: y"] * 40_000), 431, "head_too_large"),
    ("many lines", head(*["X:"] * 101), 431, "head_too_large"),
    ("a long line in a head", head(f"X: {'y' * 17_000}"), 431, "head_too_large"),
    ("a long line", b"GET /" + b"x" * 20_000, 431, "head_too_large"),
    ("no chunk", head(CHUNKED) + b"no chunk\r\n", 400, "bad_http"),
    ("a long chunk size", head(CHUNKED) + b"0" * 20_000, 431, "bad_http"),
    ("a long chunk extension", head(CHUNKED) + b"5;" + b"x" * 20_000, 431, "bad_http"),
    ("endless trailers", head(CHUNKED) + b"0\r\n" + b"X: y\r\n" * 4000, 431, "bad_http"),
    ("tiny chunks", head(CHUNKED) + b"1\r\nx\r\n" * 20_000, 400, "chunks_too_small"),
]


@pytest.mark.parametrize(
    ("sent", "status", "code"), [item[1:] for item in MALFORMED], ids=[item[0] for item in MALFORMED]
)
def test_malformed_http_is_an_error_object_and_the_end(shared: Served, sent: bytes, status: int, code: str) -> None:
    with shared.connect() as connection:
        connection.sendall(sent)
        found, headers, body = answer(connection)
        assert (found, body["error"]["code"], headers["connection"]) == (status, code, "close")
        assert until_closed(connection) == b"", "nothing of it is taken for another request"
    assert shared.get() == 200


def test_long_trailers_of_a_request_that_was_sent_ahead_are_refused(shared: Served) -> None:
    """In one piece with a body of known length, which is read in one piece."""
    with shared.connect() as connection:
        trailers = head(CHUNKED) + b"0\r\n" + b"X: y\r\n" * 40_000 + b"\r\n"
        connection.sendall(head(LENGTH) + b"12345" + trailers)
        assert [answer(connection)[0] for _ in range(2)] == [200, 431]


def test_small_chunks_of_a_small_body_are_taken(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(head(CHUNKED) + b"1\r\nx\r\n" * 120 + b"0\r\n\r\n")
        status, _, body = answer(connection)
        assert (status, body["bytes"]) == (200, 120)
        connection.sendall(head(CHUNKED) + (b"200\r\n" + bytes(512) + b"\r\n") * 5000 + b"0\r\n\r\n")
        status, _, body = answer(connection)
        assert (status, body["bytes"]) == (200, 512 * 5000)


def test_heads_up_to_the_limit_are_taken(served: Served) -> None:
    with served.connect() as connection:
        for lines in (["X: y"] * 97, [f"X: {'y' * 16_200}"]):
            connection.sendall(head("Content-Length: 2", *lines) + b"ab" + GET)
            assert [answer(connection)[0] for _ in range(2)] == [200, 200]


def test_malformed_http_within_a_body_ends_its_request(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(head(CHUNKED) + b"5\r\nhello\r\n")
        until(lambda: served.requests == 1)
        connection.sendall(b"no chunk\r\n")
        assert answer(connection)[0] == 400
    until(lambda: served.events == ["left"])


def test_malformed_requests_are_few_lines_in_the_log(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        with served.connect() as connection:
            connection.sendall(b"no HTTP\r\n\r\n")
            assert answer(connection)[0] == 400
    assert len(caplog.records) <= 2, caplog.text


def test_an_upgrade_is_no_way_past_the_limits(served: Served) -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA==")
    with served.connect() as connection:
        connection.sendall(head(*upgrade, "Content-Length: 2") + b"ab")
        assert answer(connection)[0] == 200
