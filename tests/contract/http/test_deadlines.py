"""Connections that send nothing, half of something or one byte at a time are closed; slow work is not cut off."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen3vl_edge.contract.http.connection_table import ConnectionLimits
from tests.support.raw_http import GET, Served, answer, head, is_closed, serving_http, until_closed
from tests.support.waiting import until

SHORT = ConnectionLimits(head_timeout_s=0.4, write_timeout_s=0.5)
needs_user_timeout = pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="a socket option of Linux")


@pytest.fixture(params=[("auto", False), ("asyncio", False), ("auto", True), ("asyncio", True)], ids=str)
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    loop, with_tls = request.param
    with serving_http(SHORT, loop, tmp_path if with_tls else None) as found:
        yield found


@pytest.mark.parametrize("sent", [b"", b"G", GET[:-2], head("Content-Length: 5")[:-1]])
def test_a_head_that_does_not_end(served: Served, sent: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(sent)
        assert until_closed(connection) == b""
    assert served.requests == 0


def test_a_head_of_a_byte_at_a_time(served: Served) -> None:
    with served.connect() as connection:

        def dripped() -> bool:
            try:
                connection.sendall(b"x")
            except OSError:
                return True
            return is_closed(connection)

        connection.sendall(GET[:-2] + b"X-Long: ")
        until(dripped)


def test_part_of_a_head_in_a_connection_that_was_kept(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(GET)
        assert answer(connection)[0] == 200
        connection.sendall(GET[:-2])
        assert until_closed(connection) == b""
    assert served.requests == 1


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "half a hello"])
@pytest.mark.parametrize("loop", ["auto", "asyncio"])
def test_a_handshake_that_does_not_end(loop: str, sent: bytes, tmp_path: Path) -> None:
    with serving_http(SHORT, loop, tmp_path) as served:  # type: ignore[arg-type]
        with served.plain() as connection:
            connection.sendall(sent)
            assert until_closed(connection) == b""
        assert served.get() == 200


def test_a_slow_body_and_a_slow_answer_are_not_cut_off(served: Served) -> None:
    """They take longer than the head's deadline, which is over."""
    with served.connect() as slow_body, served.connect() as slow_answer:
        slow_answer.sendall(head("Content-Length: 0", path="/held"))
        slow_body.sendall(head("Content-Length: 4") + b"ab")
        time.sleep(3 * SHORT.head_timeout_s)
        slow_body.sendall(b"cd")
        served.release.set()
        status, _, body = answer(slow_body)
        assert (status, body["bytes"]) == (200, 4)
        assert answer(slow_answer)[0] == 200
        slow_body.sendall(GET)
        assert answer(slow_body)[0] == 200


@needs_user_timeout
def test_a_client_that_does_not_read_its_answer(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(head("Content-Length: 0", path="/endless"))
        until(lambda: served.events == ["ended"])


@needs_user_timeout
def test_a_client_that_reads_slowly_gets_all(served: Served) -> None:
    """It reads a little more often than the deadline demands, for longer than that."""
    with served.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        connection.sendall(head("Content-Length: 0", path="/endless"))
        for _ in range(20):
            wanted = 2**17
            while wanted:
                piece = connection.recv(wanted)
                assert piece
                wanted -= len(piece)
            time.sleep(0.1)
        assert served.events == []
