"""h11's parser with what it lets pass refused: two framings of one body, long heads in one piece, tiny chunks."""

from __future__ import annotations

import re

import h11

from qwen3vl_edge.contract.http.errors import HttpError

MAX_HEAD_BYTES = 16 * 1024
FREE_CHUNKS, BYTES_PER_CHUNK = 1024, 256
_BLANK_LINE = re.compile(rb"\n\r?\n")


class StrictParser(h11.Connection):
    """The parser of one connection of a server.

    Attributes:
        refusal: why the last request was refused; None if none was.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.refusal: HttpError | None = None
        self._chunks = 0
        self._chunk_bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """As h11's.

        Raises:
            RemoteProtocolError: the request is refused; `refusal` says why.
        """
        try:
            self._check_head()
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._check_framing(event)
                self._chunks = self._chunk_bytes = 0
            elif isinstance(event, h11.Data):
                self._check_chunks(event)
        except h11.RemoteProtocolError as error:
            if self.refusal is None:
                status = error.error_status_hint or 400
                self.refusal = HttpError(status, "bad_http", "this is not HTTP/1.1", got=str(error)[:120])
            raise
        return event

    def _check_head(self) -> None:
        """h11 limits what it waits for, and not what is there at once: 65,000 header lines take 0.2 s."""
        if self.their_state is h11.IDLE:
            head, _ = self.trailing_data
            if len(head) > MAX_HEAD_BYTES and _BLANK_LINE.search(head, 0, MAX_HEAD_BYTES) is None:
                expected = f"at most {MAX_HEAD_BYTES} bytes"
                self._refuse(
                    HttpError(431, "head_too_large", "the head is too large", field="headers", expected=expected)
                )

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
        raise h11.RemoteProtocolError(refusal.message, error_status_hint=refusal.status)
