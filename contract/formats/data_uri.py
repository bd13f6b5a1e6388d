"""`data:` URIs with base64 content (RFC 2397), taken apart first, so that a size is checked before it is decoded."""

from __future__ import annotations

import base64
from dataclasses import dataclass


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
        """The type without its subtype: "image" of "image/png", and of the bare "image" that Qwen's examples have."""
        return self.media_type.partition("/")[0]

    @property
    def decoded_bytes(self) -> int:
        """Size of the content before it is decoded; at most two bytes too many, for the padding."""
        return len(self.payload) * 3 // 4

    def decode(self) -> bytes:
        """The content.

        Raises:
            ValueError: not base64.
        """
        return base64.b64decode(self.payload, validate=True)


def parse_data_uri(uri: str) -> DataUri | None:
    """The parts of `data:TYPE;base64,CONTENT`; None for anything else."""
    header, separator, payload = uri.partition(";base64,")
    if not separator or not header.startswith("data:"):
        return None
    return DataUri(header.removeprefix("data:").partition(";")[0], payload)
