"""`data:` URIs with base64 content (RFC 2397), parsed first, so that the size is checked before decoding."""

from __future__ import annotations

import base64
from dataclasses import dataclass

_PIECE = 2**20  # characters; four are three bytes


@dataclass(frozen=True)
class DataUri:
    """A parsed URI.

    Attributes:
        media_type: such as "image/png", without parameters.
        payload: the content in base64.
    """

    media_type: str
    payload: str

    @property
    def kind(self) -> str:
        """The type without its subtype: "image" for "image/png", and for the bare "image" in Qwen's examples."""
        return self.media_type.partition("/")[0]

    @property
    def decoded_bytes(self) -> int:
        """Size of the content, computed without decoding; up to two bytes too large because of padding."""
        return len(self.payload) * 3 // 4

    def decode(self) -> bytes:
        """The content. In pieces, between which other threads run: a decoder of base64 holds the interpreter.

        Raises:
            ValueError: not base64.
        """
        content = bytearray()
        for start in range(0, len(self.payload), _PIECE):
            piece = self.payload[start : start + _PIECE]
            if "=" in piece and start + _PIECE < len(self.payload):
                raise ValueError("padding before the end")
            content += base64.b64decode(piece, validate=True)
        return bytes(content)


def parse_data_uri(uri: str) -> DataUri | None:
    """The parts of `data:TYPE;base64,CONTENT`; None for anything else."""
    header, separator, payload = uri.partition(";base64,")
    if not separator or not header.startswith("data:"):
        return None
    return DataUri(header.removeprefix("data:").partition(";")[0], payload)
