"""HTTP by hand: a small application on a real port, and sockets that send what no well-behaved client would."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from qwen3vl_edge.contract.http.connection_table import ConnectionLimits
from qwen3vl_edge.contract.http.disconnect import DISCONNECTED, cancel_on_disconnect
from qwen3vl_edge.contract.http.tls import ServerTls
from qwen3vl_edge.tools.dev.server_thread import serving
from tests.support.certificates import make_authority, make_certificate

Loop = Literal["auto", "asyncio"]
GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


@dataclass
class Served:
    """The application's port and what its handlers saw.

    Attributes:
        events: "begun" when `/held` begins, "left" when its client is gone; "ended" when `/endless` ends.
        release: lets `/held` answer.
    """

    context: ssl.SSLContext | None = None
    port: int = 0
    requests: int = 0
    events: list[str] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    def plain(self, source: str = "127.0.0.1") -> socket.socket:
        """A connection without TLS, also to a server with it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30, source_address=(source, 0))

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        plain = self.plain(source)
        return plain if self.context is None else self.context.wrap_socket(plain, server_hostname="localhost")

    def get(self, source: str = "127.0.0.1") -> int:
        """The status of one request in a connection of its own."""
        with self.connect(source) as connection:
            connection.sendall(GET)
            return answer(connection)[0]


@contextmanager
def serving_http(limits: ConnectionLimits, loop: Loop, folder: Path | None = None) -> Iterator[Served]:
    """Serve; with TLS if there is a folder for its certificates."""
    tls, served = None, Served()
    if folder is not None:
        authority = make_authority(folder, "authority")
        pair = make_certificate(folder, "server", authority, "DNS:localhost")
        tls, served.context = ServerTls(pair.cert, pair.key), ssl.create_default_context(cafile=str(authority.cert))
    with serving(_app(served), tls, loop, limits) as served.port:
        yield served


def _app(served: Served) -> Starlette:
    async def take(request: Request) -> Response:
        served.requests += 1
        try:
            body = await request.body()
        except ClientDisconnect:
            served.events.append("left")
            raise
        client = request.client
        return JSONResponse({"bytes": len(body), "client": client.host if client is not None else None})

    async def refuse(request: Request) -> Response:
        served.requests += 1
        return JSONResponse({"refused": True}, 401)

    async def hold(request: Request) -> Response:
        served.requests += 1
        await request.body()
        served.events.append("begun")

        async def released() -> None:
            while not served.release.is_set():
                await asyncio.sleep(0.01)

        if await cancel_on_disconnect(request, released()) is DISCONNECTED:
            served.events.append("left")
        return JSONResponse({})

    async def flood(request: Request) -> Response:
        async def pieces() -> Any:
            try:
                while True:
                    yield bytes(2**16)
                    await asyncio.sleep(0)
            finally:
                served.events.append("ended")

        return StreamingResponse(pieces())

    handlers = {"/": take, "/refused": refuse, "/held": hold, "/endless": flood}
    return Starlette(routes=[Route(path, handler, methods=["GET", "POST"]) for path, handler in handlers.items()])


def head(*headers: str, path: str = "/", version: str = "1.1") -> bytes:
    """The head of a POST."""
    return "\r\n".join([f"POST {path} HTTP/{version}", "Host: here", *headers, "", ""]).encode()


def answer(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of the next answer; its head is read byte by byte, so that what follows stays."""
    found = b""
    while not found.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, f"closed after {found!r}"
        found += byte
    status, headers = _head(found)
    body = b""
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(int(headers["content-length"]) - len(body))
    return status, headers, json.loads(body) if body else None


def _head(found: bytes) -> tuple[int, dict[str, str]]:
    start, *lines = found.decode().strip().split("\r\n")
    return int(start.split()[1]), {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


def answer_while_sending(
    connection: socket.socket, piece: bytes, seconds: float = 30
) -> tuple[int, dict[str, str], Any]:
    """As `answer`, beside bytes sent without end, until the other end takes no more.

    One thread does both: OpenSSL does not allow two on one connection.
    """
    connection.setblocking(False)
    received, sent, ends = b"", 0, time.monotonic() + seconds
    busy = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
    with suppress(OSError):
        while time.monotonic() < ends:
            with suppress(*busy):
                received += connection.recv(65536)
            try:
                sent += connection.send(piece)
            except busy:
                time.sleep(0.001)
        raise AssertionError(f"{sent} bytes were taken")
    start, _, body = received.partition(b"\r\n\r\n")
    return (*_head(start), json.loads(body))


def until_closed(connection: socket.socket) -> bytes:
    """What comes until the other end closes; a reset is an end too."""
    found = b""
    with suppress(ConnectionError, ssl.SSLEOFError):
        while piece := connection.recv(65536):
            found += piece
    return found


def is_closed(connection: socket.socket) -> bool:
    """Whether the other end has closed a connection on which nothing is to come."""
    patience = connection.gettimeout()
    connection.settimeout(0)
    try:
        return connection.recv(1) == b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(patience)
