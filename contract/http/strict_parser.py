"""h11's parser with what it lets pass refused: two framings of one body, thousands of header lines, tiny chunks."""

from __future__ import annotations

import re

import h11

from qwen3vl_edge.contract.http.errors import HttpError

MAX_HEAD_BYTES, MAX_HEAD_LINES = 16 * 1024, 100
FREE_CHUNKS, BYTES_PER_CHUNK = 128, 512
_BLANK_LINE = re.compile(rb"\n\r?\n")


class StrictParser(h11.Connection):
    """The parser of one connection of a server.

    Attributes:
        refusal: why the last request was refused; None if none was.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.refusal: HttpError | None = None
        self._chunks = self._chunk_bytes = 0
        self._ahead = bytearray()  # received, and not handed to h11 yet
        self._body_left = 0  # bytes to come of a body with a length

    def receive_data(self, data: bytes) -> None:
        """As h11's. All but a body with a length reaches it in pieces of MAX_HEAD_BYTES.

        h11 limits the head or the trailers that it waits for, and not those that are there at once: a read of 256 KiB
        has 80,000 lines.
        """
        if len(data) <= self._body_left and not self._ahead:
            super().receive_data(data)
        else:
            self._ahead += data

    def forget(self) -> None:
        """Drop what was received and is not parsed yet."""
        self._ahead = bytearray()

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """As h11's.

        Raises:
            RemoteProtocolError: the request is refused; `refusal` says why.
        """
        try:
            event = self._next()
            while event is h11.NEED_DATA and self._ahead:
                size = self._body_left or MAX_HEAD_BYTES
                super().receive_data(bytes(self._ahead[:size]))
                del self._ahead[:size]
                event = self._next()
            if isinstance(event, h11.Request):
                self._check_framing(event)
                self._chunks = self._chunk_bytes = 0
                self._body_left = next((int(value) for name, value in event.headers if name == b"content-length"), 0)
            elif isinstance(event, h11.Data) and self._body_left:
                self._body_left -= len(event.data)
            elif isinstance(event, h11.Data):
                self._check_chunks(event)
        except h11.RemoteProtocolError as error:
            if self.refusal is None:
                # An unknown Transfer-Encoding, h11's 501, is the client's fault as much as the rest.
                status = error.error_status_hint if error.error_status_hint == 431 else 400
                self.refusal = HttpError(status, "bad_http", "this is not HTTP/1.1", got=str(error)[:120])
            raise
        return event

    def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.their_state is h11.IDLE:
            self._check_head(self.trailing_data[0])
        return super().next_event()

    def _check_head(self, received: bytes) -> None:
        """A header line costs 5 us."""
        end = _BLANK_LINE.search(received, 0, MAX_HEAD_BYTES)
        lines = received.count(b"\n", 0, MAX_HEAD_BYTES if end is None else end.start())
        if lines > MAX_HEAD_LINES or (end is None and len(received) >= MAX_HEAD_BYTES):
            expected = f"at most {MAX_HEAD_BYTES} bytes in {MAX_HEAD_LINES} lines"
            self._refuse(HttpError(431, "head_too_large", "the head is too large", field="headers", expected=expected))

    def _check_framing(self, request: h11.Request) -> None:
        """A proxy may end a body elsewhere than this server does, and take what follows for another's request."""
        names = {name for name, _ in request.headers}
        if b"transfer-encoding" not in names:
            return
        if b"content-length" in names:
            self._refuse(
                HttpError(
                    400,
                    "bad_length",
                    "the body has two lengths",
                    field="Content-Length",
                    expected="Content-Length or Transfer-Encoding",
                    got="both",
                )
            )
        if request.http_version < b"1.1":
            version = request.http_version.decode()
            self._refuse(
                HttpError(
                    400,
                    "bad_length",
                    "HTTP/1.0 has no chunks",
                    field="Transfer-Encoding",
                    expected="Content-Length, or HTTP/1.1",
                    got=f"HTTP/{version}",
                )
            )

    def _check_chunks(self, data: h11.Data) -> None:
        """Each chunk costs the event loop 20 us, however small it is."""
        self._chunks += data.chunk_start
        self._chunk_bytes += len(data.data)
        if self._chunks > FREE_CHUNKS + self._chunk_bytes // BYTES_PER_CHUNK:
            self._refuse(
                HttpError(
                    400,
                    "chunks_too_small",
                    "the body's chunks are too small",
                    field="Transfer-Encoding",
                    expected=f"{BYTES_PER_CHUNK} bytes a chunk on average after the first {FREE_CHUNKS}",
                    got=f"{self._chunk_bytes} bytes in {self._chunks} chunks",
                    remedy="Send larger chunks, or a Content-Length.",
                )
            )

    def _refuse(self, refusal: HttpError) -> None:
        self.refusal = refusal
        self.forget()
        raise h11.RemoteProtocolError(refusal.message, error_status_hint=refusal.status)
