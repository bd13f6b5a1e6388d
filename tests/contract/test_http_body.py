"""Request bodies over a socket: whole, bounded, and the connection as good as before.

Real uvicorn servers on real ports, on uvloop and on asyncio's loop, with and without TLS, and sockets that send what
no well-behaved client would.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.contract.http.body import read_body
from qwen3vl_edge.contract.http.disconnect import DISCONNECTED, cancel_on_disconnect
from qwen3vl_edge.contract.http.errors import HttpError
from qwen3vl_edge.contract.http.tls import ServerTls
from qwen3vl_edge.contract.machine.resident_memory import resident_bytes
from qwen3vl_edge.tools.dev.server_thread import serving
from tests.support.certificates import make_authority, make_certificate
from tests.support.waiting import until

LIMIT = 2**32
PATIENCE_S = {"/": 60.0, "/linger": 60.0, "/hasty": 0.5}
BODY = random.Random(0).randbytes(3_000_001)
Loop = Literal["auto", "asyncio"]


class Listening:
    """Where the server listens, and what its handlers saw."""

    def __init__(self) -> None:
        self.port = 0
        self.kinds: list[str] = []
        self.lost: list[str] = []

    def connect(self, context: ssl.SSLContext | None = None) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        return connection if context is None else context.wrap_socket(connection, server_hostname="localhost")


@contextmanager
def listening(loop: Loop, tls: ServerTls | None = None) -> Iterator[Listening]:
    found = Listening()

    async def take(request: Request) -> JSONResponse:
        try:
            body = await read_body(request, LIMIT, PATIENCE_S[request.url.path])
        except (HttpError, ContractError) as error:
            found.lost.append(str(getattr(error, "code", "")))
            return JSONResponse({"lost": error.message}, status_code=getattr(error, "status", 413))
        found.kinds.append(type(body).__name__)
        return JSONResponse({"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)})

    async def linger(request: Request) -> JSONResponse:
        await read_body(request, LIMIT, PATIENCE_S[request.url.path])
        if await cancel_on_disconnect(request, asyncio.sleep(20)) is DISCONNECTED:
            found.lost.append("left")
        return JSONResponse({})

    handlers = {"/": take, "/hasty": take, "/linger": linger}
    routes = [Route(path, handler, methods=["POST"]) for path, handler in handlers.items()]
    with serving(Starlette(routes=routes), tls, loop) as found.port:
        yield found


@pytest.fixture(params=["auto", "asyncio"])
def here(request: pytest.FixtureRequest) -> Iterator[Listening]:
    with listening(request.param) as found:
        yield found


def head(length: int, *more: str, path: str = "/") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: here", f"Content-Length: {length}", *more, "", ""]
    return "\r\n".join(lines).encode()


def answer(connection: socket.socket) -> dict[str, Any]:
    """The next answer; its head is read byte by byte, so that what follows it stays in the socket."""
    found = b""
    while not found.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, f"closed after {found!r}"
        found += byte
    length = next(int(line[15:]) for line in found.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    body = b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return {"status": int(found.split()[1]), **json.loads(body)}


def whole(body: bytes) -> dict[str, Any]:
    return {"status": 200, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}


@pytest.mark.parametrize("pieces", [[2**24], [1, 7, 60_000, 700_001], [300_000]], ids=["at once", "uneven", "even"])
def test_a_long_body_is_one_buffer(here: Listening, pieces: list[int]) -> None:
    with here.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(head(len(BODY)))
        at = 0
        for length in itertools.cycle(pieces):
            connection.sendall(BODY[at : at + length])
            if (at := at + length) >= len(BODY):
                break
        assert answer(connection) == whole(BODY)
    assert here.kinds == ["memoryview"]


def test_requests_follow_one_another_in_one_connection(here: Listening) -> None:
    """Also where the next one is sent with the end of a body."""
    bodies = [BODY, b"short", BODY[:-1], b"", BODY[1:]]
    with here.connect() as connection:
        sending = b"".join(head(len(body)) + body for body in bodies)
        thread = threading.Thread(target=connection.sendall, args=(sending,))
        thread.start()
        for body in bodies:
            assert answer(connection) == whole(body)
        thread.join()
    assert here.kinds == ["memoryview"] * len(bodies)


def test_chunks_and_a_body_that_waits_for_100_continue(here: Listening) -> None:
    with here.connect() as connection:
        connection.sendall(head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        connection.sendall(f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n0\r\n\r\n")
        assert answer(connection) == whole(BODY)
        connection.sendall(head(len(BODY), "Expect: 100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(BODY)
        assert answer(connection) == whole(BODY)
    assert here.kinds == ["bytearray", "memoryview"]


def test_a_client_that_leaves_within_its_body_is_told_from_one_that_is_slow(here: Listening) -> None:
    with here.connect() as connection:
        connection.sendall(head(len(BODY)) + BODY[:1_000_000])
    until(lambda: here.lost == ["client_left"])
    with here.connect() as connection:
        connection.sendall(head(len(BODY), path="/hasty") + BODY[:1_000_000])
        late = answer(connection)
        assert (late["status"], here.lost) == (408, ["client_left", "body_timeout"])
        assert connection.recv(1) == b"", "the rest is of no use, and neither is the connection"


def test_a_client_that_leaves_after_its_body_is_noticed(here: Listening) -> None:
    with here.connect() as connection:
        connection.sendall(head(len(BODY), path="/linger") + BODY)
    until(lambda: here.lost == ["left"])


def test_a_claim_takes_no_memory(here: Listening) -> None:
    before = resident_bytes()
    connections = [here.connect() for _ in range(8)]
    for connection in connections:
        connection.sendall(head(2**30, path="/hasty") + BODY)
    until(lambda: len(here.lost) == 8)  # all of them too slow
    for connection in connections:
        connection.close()
    assert resident_bytes() - before < 2**28


def test_more_bytes_than_announced_are_refused() -> None:
    """No HTTP parser lets them through; an application under another ASGI server is not to depend on it."""
    messages = iter([{"type": "http.request", "body": b"12345", "more_body": True}] * 2)

    async def receive() -> Any:
        return next(messages)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"9")]}
    with pytest.raises(HttpError) as refused:
        asyncio.run(read_body(Request(scope, receive), LIMIT, 60))
    assert (refused.value.status, refused.value.code) == (400, "bad_length")


@pytest.mark.parametrize("loop", ["auto", "asyncio"])
def test_over_tls_too(loop: Loop, tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "authority")
    pair = make_certificate(tmp_path, "server", authority, "DNS:localhost")
    context = ssl.create_default_context(cafile=str(authority.cert))
    with listening(loop, ServerTls(pair.cert, pair.key)) as here, here.connect(context) as connection:
        for body in (BODY, BODY[1:]):
            connection.sendall(head(len(body)) + body)
            assert answer(connection) == whole(body)
        assert here.kinds == ["memoryview", "memoryview"]


def test_many_connections_at_once_get_what_they_sent(here: Listening) -> None:
    """Whole bodies between such that end early; nothing of one comes into another."""

    def client(seed: int) -> int:
        chance, whole_ones = random.Random(seed), 0
        connection = here.connect()
        for _ in range(12):
            start, length = chance.randrange(1000), chance.choice([10, 300_000, 1_500_000, 2_900_000])
            body = BODY[start : start + length]
            if chance.random() < 0.3:
                connection.sendall(head(len(body)) + body[: chance.randrange(len(body))])
                connection.close()
                connection = here.connect()
                continue
            connection.sendall(head(len(body)) + body)
            assert answer(connection) == whole(body)
            whole_ones += 1
        connection.close()
        return whole_ones

    with ThreadPoolExecutor(16) as pool:
        done = sum(pool.map(client, range(16)))
    assert done > 50
    until(lambda: len(here.kinds) == done)
