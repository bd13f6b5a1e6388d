"""Request bodies of a known length, from the socket into one buffer: uvicorn and h11 copy each byte five times.

An application that knows the length it is about to read asks for it with `DirectBody.receive`. Until then, and wherever
the body cannot be had this way (chunked, `Expect: 100-continue`, short), it comes as ASGI has it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from qwen3vl_edge.contract.http.body import DIRECT_BODY

LEAST_BYTES = 2**18  # what is shorter is there before the sockets were handed over


class DirectBodies(H11Protocol):
    """uvicorn's HTTP/1.1 on h11, whose applications find a `DirectBody` in their scope."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        app = self.app

        async def offering(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, DIRECT_BODY: DirectBody(self, self.cycle)}, receive, send)  # type: ignore[arg-type]

        self.app = offering  # type: ignore[assignment]


class DirectBody(asyncio.BufferedProtocol):
    """The body of one request; takes the connection's place at the transport while it is read."""

    def __init__(self, connection: DirectBodies, cycle: RequestResponseCycle) -> None:
        self._connection = connection
        self._cycle = cycle
        self._view = memoryview(b"")
        self._filled = 0
        self._over = asyncio.Event()

    async def receive(self) -> memoryview | None:
        """All of the body, None where it has to come through ASGI; that then still has its end to tell, or its loss.

        The buffer is as long as the client says: the caller knows its limit. Of memory that nobody wrote to yet the
        system gives none away, so a claim alone costs addresses.
        """
        missing = self._missing()
        if missing is None or missing < LEAST_BYTES:
            return None
        early, self._cycle.body = self._cycle.body, bytearray()
        self._view = memoryview(np.empty(len(early) + missing, np.uint8))  # type: ignore[arg-type]
        self._view[: len(early)] = early
        self._filled = len(early)
        self._connection.transport.set_protocol(self)
        self._connection.flow.resume_reading()
        try:
            await self._over.wait()
        finally:
            self._give_back()
        return self._view if self._filled == len(self._view) else None

    def _missing(self) -> int | None:
        """Bytes that h11 still waits for, where it has handed on all that it got, and counts what comes."""
        connection, cycle = self._connection, self._cycle
        if cycle is not connection.cycle or cycle.disconnected or connection.transport.is_closing():
            return None
        if not cycle.more_body or cycle.waiting_for_100_continue or connection.conn.trailing_data[0]:
            return None
        missing = getattr(_reader(connection), "_remaining", None)
        return missing if isinstance(missing, int) else None

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        _reader(self._connection)._remaining -= nbytes
        if self._filled == len(self._view):
            self._give_back()
            self._connection.handle_events()  # the body's end

    def _give_back(self) -> None:
        self._over.set()
        if self._connection.transport.get_protocol() is self:
            self._connection.transport.set_protocol(self._connection)

    def eof_received(self) -> None:
        self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over.set()
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()


def _reader(connection: DirectBodies) -> Any:
    """h11's count of what a body of known length still brings; there is no public name for it."""
    return getattr(connection.conn, "_reader", None)
