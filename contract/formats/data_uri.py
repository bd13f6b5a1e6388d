"""`data:` URIs with base64 content (RFC 2397), parsed first, so that the size is checked before decoding."""

from __future__ import annotations

import base64
from dataclasses import dataclass

_PIECE = 2**20  # characters; four are three bytes
_SEPARATOR = ";base64,"
_BREAKS = ("\r", "\n")  # not spaces: they may be what a form made of "+"
_LONGEST_TYPE = 1024  # characters before the content


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
        """A copy of the content in base64, without line breaks."""
        return joined_base64(self.uri[self.start :])

    @property
    def decoded_bytes(self) -> int:
        """Size of the content, computed without decoding; up to two bytes too large because of padding."""
        breaks = sum(self.uri.count(mark, self.start) for mark in _BREAKS)
        return (len(self.uri) - self.start - breaks) * 3 // 4

    def decode(self) -> bytes:
        """The content. In pieces, between which other threads run: a decoder of base64 holds the interpreter.

        Raises:
            ValueError: not base64.
        """
        pieces, rest, padded = [], "", False
        for start in range(self.start, len(self.uri), _PIECE):
            piece = rest + joined_base64(self.uri[start : start + _PIECE])
            is_last = start + _PIECE >= len(self.uri)
            whole = len(piece) if is_last else len(piece) // 4 * 4
            piece, rest = piece[:whole], piece[whole:]
            if padded and piece:
                raise ValueError("padding before the end")
            padded = padded or "=" in piece
            pieces.append(base64.b64decode(piece, validate=True))
        return b"".join(pieces)


def parse_data_uri(uri: str) -> DataUri | None:
    """The parts of `data:TYPE;base64,CONTENT`, scheme, type and encoding in any case; None for anything else."""
    comma = uri.find(",", 0, _LONGEST_TYPE)
    head = uri[: comma + 1].lower()
    if not head.startswith("data:") or not head.endswith(_SEPARATOR):
        return None
    return DataUri(head[len("data:") :].partition(";")[0].strip(), uri, comma + 1)


def joined_base64(text: str) -> str:
    """Base64 without the line breaks that MIME's encoders write (RFC 2045, 6.8)."""
    for mark in _BREAKS:
        if mark in text:
            text = text.replace(mark, "")
    return text
