"""`data:` URIs with base64 content (RFC 2397), parsed first, so that the size is checked before decoding."""

from __future__ import annotations

import base64
from dataclasses import dataclass

_PIECE = 2**20  # characters; four are three bytes
_SEPARATOR = ";base64,"


@dataclass(frozen=True)
class DataUri:
    """A parsed URI. Its content is not copied: it may be all of a large request.

    Attributes:
        media_type: such as "image/png", without parameters.
        uri: all of it.
        start: index of the first character of the content in base64.
    """

    media_type: str
    uri: str
    start: int

    @property
    def kind(self) -> str:
        """The type without its subtype: "image" for "image/png", and for the bare "image" in Qwen's examples."""
        return self.media_type.partition("/")[0]

    @property
    def payload(self) -> str:
        """A copy of the content in base64."""
        return self.uri[self.start :]

    @property
    def decoded_bytes(self) -> int:
        """Size of the content, computed without decoding; up to two bytes too large because of padding."""
        return (len(self.uri) - self.start) * 3 // 4

    def decode(self) -> bytes:
        """The content. In pieces, between which other threads run: a decoder of base64 holds the interpreter.

        Raises:
            ValueError: not base64.
        """
        pieces = []
        for start in range(self.start, len(self.uri), _PIECE):
            piece = self.uri[start : start + _PIECE]
            if "=" in piece and start + _PIECE < len(self.uri):
                raise ValueError("padding before the end")
            pieces.append(base64.b64decode(piece, validate=True))
        return b"".join(pieces)


def parse_data_uri(uri: str) -> DataUri | None:
    """The parts of `data:TYPE;base64,CONTENT`; None for anything else."""
    start = uri.find(_SEPARATOR)
    if start < 0 or not uri.startswith("data:"):
        return None
    return DataUri(uri[len("data:") : start].partition(";")[0], uri, start + len(_SEPARATOR))
