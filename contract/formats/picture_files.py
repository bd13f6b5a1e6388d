"""Which files are pictures for device and server alike, and what to say of one that its decoder refuses."""

from __future__ import annotations

from functools import cache

# What clients send. Pillow reads some forty more, of which some run a program (EPS is given to Ghostscript) or decode
# to another size than they say.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
AVIF = "AVIF"  # where this Pillow reads it, from 11.3 on
_MEDIA_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    AVIF: "image/avif",
}
JPEG_FORMATS = ("JPEG", "MPO")  # as Pillow names them
# What libjpeg decodes (JPEG_MAX_DIMENSION); the format allows 65,535.
MAX_JPEG_SIDE = 65_500
_LONGEST_REASON = 160
_SPEAK_FOR_THEMSELVES = (OSError, SyntaxError, EOFError, ValueError, OverflowError)


def fault_of(error: Exception) -> str:
    """One line about what a decoder raised.

    Pillow's plugins raise what reading a damaged structure happens to raise: struct.error, IndexError, KeyError,
    TypeError, AttributeError, RuntimeError, SystemError, MemoryError and others, so that no list is complete.
    """
    words = " ".join(str(error).split())[:_LONGEST_REASON]
    if words and isinstance(error, _SPEAK_FOR_THEMSELVES):
        return words
    name = type(error).__name__
    return f"{name}: {words}" if words else name


@cache
def client_formats() -> tuple[str, ...]:
    """Formats, as Pillow names them, in which this installation takes pictures from clients."""
    from PIL import features

    try:
        has_avif = features.check_module("avif")
    except ValueError:  # an earlier Pillow does not know it
        has_avif = False
    return (*FORMATS, AVIF) if has_avif else FORMATS


def client_media_types() -> tuple[str, ...]:
    """The same as media types."""
    return tuple(_MEDIA_TYPES[form] for form in client_formats())
