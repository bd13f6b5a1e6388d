"""A connection of the HTTP server: uvicorn's h11 protocol with deadlines, and an end that lets a refusal arrive."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Literal

import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from qwen3vl_edge.contract.http.connection_table import Connection, ConnectionTable
from qwen3vl_edge.contract.http.errors import HttpError
from qwen3vl_edge.contract.http.strict_parser import StrictParser

LINGER_SECONDS, LINGER_BYTES = 1.0, 64 * 1024
PROGRESS_BYTES = 64 * 1024  # of a body, after which its connection counts as waiting anew
FIRST_PROBE_SECONDS = 0.05
CLOSE_CHECK_SECONDS = 0.1
_TCP_INFO_BYTES, _RECEIVED = 136, slice(128, 136)  # `tcpi_bytes_received` of Linux' struct tcp_info
_CLOSE = (b"connection", b"close")
_CONTINUE = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
OnRefusal = Callable[[HttpError, str], None]  # with the address of the client
_Phase = Literal["idle", "reading", "answering", "stalled", "closing"]


class HttpConnection(H11Protocol):
    """One connection.

    - Its first head, and any later one that has begun, must be complete within `head_timeout_s`.
    - After an answer to a request whose body is not complete, the rest of the body is read for LINGER_SECONDS or up to
      LINGER_BYTES, and the connection is closed. Closed at once, it would be reset, and the answer lost.
    - A client that ends its sending after an HTTP/1.1 request still gets the answer. Whether it is still there is found
      out by sending `100 Continue`, which a closed socket resets. With TLS the end of sending is the end.

    Args:
        place: its entry in the table.
        on_refusal: told of a request that is refused before the application sees it.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        table: ConnectionTable,
        place: Connection,
        head_timeout_s: float,
        on_refusal: OnRefusal,
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.conn = self._parser = StrictParser()
        self._inner_app: ASGIApp = self.app
        self.app = self._run
        self._table, self._place = table, place
        self._head_timeout_s = head_timeout_s
        self._on_refusal = on_refusal
        self._phase: _Phase = "idle"
        self._received = 0  # of the body, since the connection began to wait
        self._own: asyncio.Transport | None = None
        self._closing = self._half_closed = False
        self._lingering, self._lingered = False, 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._other_timer: asyncio.TimerHandle | None = None  # of the end, or of a half-closed connection

    # The transport's calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if self._place not in self._table:  # closed before it began, of which uvloop does not tell its protocol
            transport.abort()
            return
        self._own = transport
        super().connection_made(_Transport(transport, self))
        self._place.close = transport.abort
        self._head_timer = self.loop.call_later(self._head_timeout_s, transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            self._lingered += len(data)
            if self._lingered >= LINGER_BYTES:
                self.flow.pause_reading()
            return
        super().data_received(data)
        self._received += len(data)
        self._settle()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        if self._closing or self.scheme == "https" or not self._in_flight or self.cycle.more_body:
            return None
        if self._parser.their_http_version != b"1.1":  # it cannot be asked whether it is still there
            return None
        if not self._half_closed:
            self._half_closed = True
            self._probe_in(FIRST_PROBE_SECONDS)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._own is None:
            return
        self._closing = True
        self._stop_timers()
        self._table.remove(self._place)
        self._parser.forget()  # this connection is part of a circle, which is found late
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._settle()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._settle()

    # uvicorn's calls

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._half_closed and not self._closing:
            if self._in_flight:  # requests were sent in one go
                self._probe_in(FIRST_PROBE_SECONDS)
            else:
                self.transport.close()
        self._settle()

    def send_400_response(self, msg: str) -> None:
        refusal = self._parser.refusal or HttpError(400, "bad_http", "this is not HTTP/1.1")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(refusal.to_openai()).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), _CLOSE]
            reason = HTTPStatus(refusal.status).phrase.encode()
            answer = h11.Response(status_code=refusal.status, headers=headers, reason=reason)
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            if not self._in_flight:
                self._on_refusal(refusal, self._place.address)
        self.transport.close()

    def shutdown(self) -> None:
        if self._closing:
            self.close()
        else:
            super().shutdown()

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, whose answer says that the connection ends where the body is not complete."""

        async def announcing(message: Message) -> None:
            if message["type"] == "http.response.start" and self.cycle.more_body:
                message = {**message, "headers": [*message.get("headers", ()), _CLOSE]}
            await send(message)

        await self._inner_app(scope, receive, announcing)

    def close(self) -> None:
        """End the connection: at once, or once the client has had the time to read why its body was refused."""
        own = self._own
        assert own is not None
        if self._closing or own.is_closing():
            self._end()
            return
        self._closing = True
        self._stop_timers()
        if self._in_flight:  # uvicorn would tell the application only once the connection is gone
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self._half_closed or self.conn.their_state not in (h11.SEND_BODY, h11.ERROR):
            own.close()
            if self.scheme == "https":
                self._watch_close(_received_bytes(own) + LINGER_BYTES)
        else:
            self._linger(own)
        self._settle()

    def _linger(self, own: asyncio.Transport) -> None:
        if self.cycle is not None:
            self.cycle.body = bytearray()
        self._lingering = True
        self._other_timer = self.loop.call_later(LINGER_SECONDS, self._end)
        self.flow.resume_reading()
        if self.scheme == "http":  # TLS has no half-closed connections
            with suppress(OSError):  # the client is gone already
                own.write_eof()

    def _watch_close(self, most: int) -> None:
        """Abort once more was received: uvloop waits 30 s for the client to close TLS, and reads on meanwhile."""
        assert self._own is not None
        if _received_bytes(self._own) > most:
            self._own.abort()
        else:
            self._other_timer = self.loop.call_later(CLOSE_CHECK_SECONDS, self._watch_close, most)

    def _end(self) -> None:
        """End a connection that lingers, or one that is closed already."""
        assert self._own is not None
        if self._lingering and self.scheme == "https":
            self._own.abort()  # `close` would read on, as in `_watch_close`
        else:
            self._own.close()

    # Deadlines

    @property
    def is_closing(self) -> bool:
        """Whether nothing more is sent."""
        return self._closing

    @property
    def _in_flight(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _settle(self) -> None:
        """After anything happened: start or stop the head's deadline, and tell the table who waits for whom."""
        phase = self._phase_now()
        if phase != "idle":
            self._stop_head_timer()
        elif self._head_timer is None and self.timeout_keep_alive_task is None:
            assert self._own is not None
            self._head_timer = self.loop.call_later(self._head_timeout_s, self._own.abort)
        if phase == "answering" and phase != self._phase:
            self._table.answer(self._place)
        elif phase != self._phase or (phase == "reading" and self._received >= PROGRESS_BYTES):
            self._received = 0
            self._table.wait(self._place)
        self._phase = phase

    def _phase_now(self) -> _Phase:
        if self._closing or self.transport.is_closing():
            return "closing"
        if not self._in_flight:
            return "idle"
        if self.flow.write_paused:
            return "stalled"
        return "reading" if self.cycle.more_body else "answering"

    def _probe_in(self, seconds: float) -> None:
        if self._other_timer is not None:
            self._other_timer.cancel()
        self._other_timer = self.loop.call_later(seconds, self._probe, 2 * seconds)

    def _probe(self, next_in: float) -> None:
        """Ask a client that has ended its sending whether it is still there: ever less often, so ten times in 50 s."""
        if self._closing or not self._in_flight or self.cycle.response_started:
            return  # what is sent of the answer asks as well
        assert self._own is not None
        if not _is_connected(self._own):
            self._own.abort()
            return
        self.transport.write(self.conn.send(_CONTINUE) or b"")
        self._probe_in(next_in)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_timers(self) -> None:
        self._stop_head_timer()
        if self._other_timer is not None:
            self._other_timer.cancel()
            self._other_timer = None


def _is_connected(transport: asyncio.Transport) -> bool:
    """False once the other end has reset the connection; a transport that does not read does not notice."""
    connected: socket.socket = transport.get_extra_info("socket")
    return connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def _received_bytes(transport: asyncio.Transport) -> int:
    """Bytes that the kernel has received on a TCP connection; 0 where it does not say."""
    connected: socket.socket = transport.get_extra_info("socket")
    try:
        info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except (AttributeError, OSError):  # not on Linux, or it is closed already
        return 0
    return int.from_bytes(info[_RECEIVED], sys.byteorder)  # empty before Linux 4.1


class _Transport(asyncio.Transport):
    """What uvicorn takes for the transport: the connection's own one, which ends as `HttpConnection.close` does."""

    def __init__(self, own: asyncio.Transport, connection: HttpConnection) -> None:
        super().__init__()
        self._own, self._connection = own, connection

    def write(self, data: Any) -> None:
        self._own.write(data)

    def close(self) -> None:
        self._connection.close()

    def is_closing(self) -> bool:
        return self._connection.is_closing or self._own.is_closing()

    def abort(self) -> None:
        self._own.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._own.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._own.pause_reading()

    def resume_reading(self) -> None:
        self._own.resume_reading()
