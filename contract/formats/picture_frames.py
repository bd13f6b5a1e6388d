"""How many frames a picture's file has; the first is what is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# A picture for each eye, or a map of depth or light, behind the picture itself; a collection with a picture of its own.
_NO_ANIMATION = ("MPO", "HEIF")
_GIF_IMAGE, _GIF_EXTENSION = 0x2C, 0x21


def frame_count(image: Any, content: bytes | Path) -> int:
    """Frames or pages of an opened picture's file, as far as it is whole."""
    if image.format in _NO_ANIMATION:
        return 1
    if image.format == "GIF":  # Pillow reads every block of it in Python to count them
        return max(1, _gif_frames(content if isinstance(content, bytes) else content.read_bytes()))
    try:
        return max(1, int(getattr(image, "n_frames", 1)))
    except Exception:  # of a damaged directory of pages, behind the page that is shown
        return 1


def _gif_frames(data: bytes) -> int:
    """Image descriptors of a GIF file (GIF89a, sections 15 to 26)."""
    frames, end = 0, len(data)
    place = 13 + _colour_table(data[10]) if end > 13 else end
    while place < end:
        kind = data[place]
        if kind == _GIF_IMAGE and place + 10 < end:
            frames += 1
            place += 11 + _colour_table(data[place + 9])  # the descriptor, and the LZW code size
        elif kind == _GIF_EXTENSION:
            place += 2
        else:
            break
        while place < end and data[place]:
            place += data[place] + 1
        place += 1
    return frames


def _colour_table(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
