"""How many pixels a compressed picture may have: a small file must not become a large one in memory."""

from __future__ import annotations

FREE_PIXELS = 8_388_608  # 4K, and 3840 x 2160; with its copy in RGB at most 59 MB
PIXELS_PER_BYTE = 10  # beyond them; photographs have 2 to 8 pixels a byte


def most_pixels(file_bytes: int) -> int:
    """The most pixels of a picture whose file has so many bytes."""
    return max(FREE_PIXELS, PIXELS_PER_BYTE * file_bytes)
