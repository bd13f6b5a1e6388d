"""An encoded body and its HTTP headers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WireBody:
    """A request body, sent as separate buffers without joining them.

    Attributes:
        buffers: bytes; views of the tensors' own memory.
        content_type: the media type; of the uncompressed body if it is compressed.
        encoding: the Content-Encoding, None if the body is not compressed.
    """

    buffers: tuple[memoryview, ...]
    content_type: str
    encoding: str | None = None

    @property
    def size(self) -> int:
        """Bytes as sent."""
        return sum(buffer.nbytes for buffer in self.buffers)

    @property
    def headers(self) -> dict[str, str]:
        """Content-Type, Content-Length and, for a compressed body, Content-Encoding."""
        headers = {"Content-Type": self.content_type, "Content-Length": str(self.size)}
        return headers if self.encoding is None else {**headers, "Content-Encoding": self.encoding}

    def __bytes__(self) -> bytes:
        return b"".join(self.buffers)
