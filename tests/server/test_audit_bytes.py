"""The audit log's count of body bytes, from real uvicorn servers on real ports, with and without TLS."""

from __future__ import annotations

import json
import random
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import zstandard
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.contract.http.body import read_body
from qwen3vl_edge.contract.http.errors import error_response
from qwen3vl_edge.contract.http.tls import ServerTls
from qwen3vl_edge.server.http.audit import AuditLog, RequestRecord
from qwen3vl_edge.tools.dev.server_thread import serving
from tests.support.certificates import make_authority, make_certificate
from tests.support.waiting import until

LIMIT = 4_000_000
BODY = random.Random(0).randbytes(3_000_001)
SIZES = [0, 1, 2**16, 2**18 - 1, 2**18, 2**18 + 1, len(BODY)]


@dataclass
class Served:
    """A server whose one route reads the body.

    Attributes:
        read: bytes of the current request's body that the application has received.
    """

    log: Path
    context: ssl.SSLContext | None
    port: int = 0
    read: int = 0
    answered: int = 0

    def connect(self) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        return plain if self.context is None else self.context.wrap_socket(plain, server_hostname="localhost")

    def line(self) -> dict[str, Any]:
        """The audit log's next line; it follows the answer."""
        self.answered += 1
        until(lambda: len(self.log.read_text().splitlines()) >= self.answered)
        lines = self.log.read_text().splitlines()
        assert len(lines) == self.answered
        found: dict[str, Any] = json.loads(lines[-1])
        return found

    def exchange(self, *parts: bytes) -> tuple[int, int]:
        """Status of the answer, and the count in the audit log."""
        with closing(self.connect()) as connection:
            for part in parts:
                connection.sendall(part)
            status = status_of(connection)
        line = self.line()
        assert line["status"] == status
        return status, line["bytes_in"]


def status_of(connection: socket.socket) -> int:
    """Of the next answer, which is read to its end."""
    response = HTTPResponse(connection)
    response.begin()
    response.read()
    return response.status


class Watched:
    """ASGI middleware below the audit log: how much of the body has been read."""

    def __init__(self, app: ASGIApp, served: Served) -> None:
        self._app, self._served = app, served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._served.read = 0

        async def watched() -> Message:
            message = await receive()
            self._served.read += len(message.get("body", b""))
            return message

        await self._app(scope, watched, send)


async def take(request: Request) -> JSONResponse:
    if "authorization" not in request.headers:
        return JSONResponse({}, 401)
    try:
        body = await read_body(request, LIMIT, 60.0, zstd=True)
    except ContractError as error:
        request.state.error_code = error.code
        return error_response(error)
    return JSONResponse({"bytes": len(body)})


@pytest.fixture(params=["plain", "tls"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    tls, context = None, None
    if request.param == "tls":
        authority = make_authority(tmp_path, "authority")
        pair = make_certificate(tmp_path, "server", authority, "DNS:localhost")
        tls, context = ServerTls(pair.cert, pair.key), ssl.create_default_context(cafile=str(authority.cert))
    found = Served(tmp_path / "audit.jsonl", context)
    app = RequestRecord(Watched(Starlette(routes=[Route("/", take, methods=["POST"])]), found), AuditLog(found.log))
    with serving(app, tls) as found.port:
        yield found


def head(*headers: str) -> bytes:
    return "\r\n".join(["POST / HTTP/1.1", "Host: here", "Authorization: Bearer x", *headers, "", ""]).encode()


def with_length(length: int) -> bytes:
    return head(f"Content-Length: {length}")


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def test_bodies_of_known_length(served: Served) -> None:
    for size in SIZES:
        assert served.exchange(with_length(size), BODY[:size]) == (200, size)
        assert served.exchange(with_length(size) + BODY[:size]) == (200, size)


def test_chunks_count_without_their_frames(served: Served) -> None:
    for size in SIZES:
        for piece in (1000, 2**18, len(BODY)):
            content = chunked(BODY[:size], piece)
            assert served.exchange(head("Transfer-Encoding: chunked"), content) == (200, size)


@pytest.mark.parametrize("content", [bytes(3_000_000), BODY[:1_000_000]], ids=["zeros", "noise"])
def test_a_compressed_body_counts_as_it_was_sent(served: Served, content: bytes) -> None:
    sent = zstandard.ZstdCompressor().compress(content)
    headers = head("Content-Encoding: zstd", f"Content-Length: {len(sent)}")
    assert served.exchange(headers, sent) == (200, len(sent))


def test_a_body_that_waits_for_100_continue(served: Served) -> None:
    with closing(served.connect()) as connection:
        connection.sendall(head("Expect: 100-continue", f"Content-Length: {len(BODY)}"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(BODY)
        assert status_of(connection) == 200
    assert served.line()["bytes_in"] == len(BODY)


def test_requests_in_one_connection_count_each_its_own(served: Served) -> None:
    with closing(served.connect()) as connection:
        for size in SIZES:
            connection.sendall(with_length(size) + BODY[:size])
            assert status_of(connection) == 200
            assert served.line()["bytes_in"] == size


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["Content-Length: 2000000"], 401),
        (["Authorization: Bearer x", f"Content-Length: {LIMIT + 1}"], 413),
        (["Authorization: Bearer x", "Content-Length: 2000000", "Content-Encoding: gzip"], 415),
    ],
)
def test_what_is_refused_by_its_headers_is_not_read(served: Served, headers: list[str], status: int) -> None:
    request = "\r\n".join(["POST / HTTP/1.1", "Host: here", *headers, "", ""]).encode()
    assert served.exchange(request) == (status, 0)
    assert served.exchange(request + BODY[:100_000]) == (status, 0)


def test_a_body_that_grows_past_the_limit_counts_until_it_is_refused(served: Served) -> None:
    body = BODY * 2
    with closing(served.connect()) as connection:
        connection.sendall(head("Transfer-Encoding: chunked") + b"%x\r\n" % len(body) + body[: LIMIT + 1])
        assert status_of(connection) == 413
    line = served.line()
    assert (line["status"], line["bytes_in"]) == (413, LIMIT + 1)


@pytest.mark.parametrize("size", [0, 1000, 2**18 + 1, 2_000_000])
@pytest.mark.parametrize("announce", [with_length, lambda length: head("Transfer-Encoding: chunked")])
def test_a_body_that_the_client_cuts_counts_what_came(
    served: Served, announce: Callable[[int], bytes], size: int
) -> None:
    headers = announce(len(BODY))
    frame = b"%x\r\n" % len(BODY) if b"chunked" in headers else b""
    with closing(served.connect()) as connection:
        connection.sendall(headers + frame + BODY[:size])
        until(lambda: served.read == size)
    line = served.line()
    assert (line["status"], line["bytes_in"], line["error"]) == (400, size, "client_left")


def test_a_body_that_breaks_http_counts_what_came_before(served: Served) -> None:
    with closing(served.connect()) as connection:
        connection.sendall(head("Transfer-Encoding: chunked") + b"%x\r\n" % 300_000 + BODY[:300_000] + b"\r\n")
        until(lambda: served.read == 300_000)
        connection.sendall(b"no chunk\r\n")
        assert status_of(connection) == 400
    line = served.line()
    assert (line["bytes_in"], line["error"]) == (300_000, "client_left")
