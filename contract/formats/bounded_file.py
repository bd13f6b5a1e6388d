"""Picture files as Pillow gets them, their structure bounded: metadata in pieces of a byte, scans without end.

Pillow reads a file's structure in Python, piece by piece, and some pieces are added to those before in quadratic time
(comments of a GIF file, Exif of a JPEG file). A file whose structure takes more reads than a real one's is refused.
"""

from __future__ import annotations

import io
from pathlib import Path

from qwen3vl_edge.contract.errors import LimitError

# 500 segments of a JPEG file, or half a megabyte of a GIF file's comments; encoders write some ten pieces.
HEADER_READS = 2048
# To the end of the file: a chunk of a PNG file takes four, and encoders write 8 kB into each.
READS, BYTES_PER_READ = 2048, 256
# A progressive JPEG has 10, an optimized one some 30, and each is a pass over all of the picture; libjpeg-turbo's own
# fuzzers stop after 500.
MAX_SCANS = 100
_START_OF_SCAN = b"\xff\xda"
_BLOCK = 2**20
_PNG_TEXT_BYTES = 4 * 2**20


class BoundedFile(io.BufferedReader):
    """A file that refuses to be read in too many pieces."""

    def __init__(self, content: bytes | Path, label: str, field: str = "image") -> None:
        """Raises: OSError: as `open`."""
        super().__init__(io.BytesIO(content) if isinstance(content, bytes) else io.FileIO(content))  # type: ignore[arg-type]
        self._label, self._field = label, field
        self._left = HEADER_READS
        self.bytes = self.seek(0, io.SEEK_END)
        self.seek(0)

    def header_is_read(self) -> None:
        """The rest may take as many reads as its size makes plausible."""
        self._left = READS + self.bytes // BYTES_PER_READ

    def read(self, size: int | None = -1, /) -> bytes:
        """Raises: LimitError: read in too many pieces."""
        self._left -= 1
        if self._left < 0:
            raise LimitError(
                f"picture {self._label} has too many pieces of metadata",
                field=self._field,
                remedy="Save it without metadata.",
            )
        return super().read(size)

    def whole(self) -> bytes:
        """All of the file; the place in it stays."""
        place = self.tell()
        self.seek(0)
        content = super().read()
        self.seek(place)
        return content

    def check_scans(self) -> None:
        """Count the scans of a JPEG file; the marker occurs in no compressed data (ITU-T T.81, B.1.1.5).

        Raises:
            LimitError: more than any encoder writes.
        """
        self.seek(0)
        scans, last = 0, b""
        while block := super().read(_BLOCK):
            scans += (last + block).count(_START_OF_SCAN)
            last = block[-1:] if block[-1:] == b"\xff" else b""
        self.seek(0)
        if scans > MAX_SCANS:
            raise LimitError(
                f"picture {self._label} has too many scans",
                field=self._field,
                expected=f"at most {MAX_SCANS}",
                got=scans,
                remedy="Save it as a baseline JPEG file.",
            )


def bound_png_text() -> None:
    """Let all text of a PNG file take 4 MiB of memory, for this process: it may be compressed, and Pillow allows 64."""
    from PIL import PngImagePlugin

    PngImagePlugin.MAX_TEXT_MEMORY = _PNG_TEXT_BYTES
