"""Which files are pictures for device and server alike, and what to say of one that its decoder refuses."""

from __future__ import annotations

from functools import cache

# What clients send. Pillow reads some forty more, of which some run a program (EPS is given to Ghostscript) or decode
# to another size than they say.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
AVIF = "AVIF"  # where this Pillow reads it, from 11.3 on
HEIF = "HEIF"  # where pillow-heif is installed, the extra `heic`
CODED_FORMATS = (AVIF, HEIF)  # whose frames may be larger than the file says
_MEDIA_TYPES = {
    "PNG": ("image/png",),
    "JPEG": ("image/jpeg",),
    "WEBP": ("image/webp",),
    "GIF": ("image/gif",),
    "BMP": ("image/bmp",),
    AVIF: ("image/avif",),
    HEIF: ("image/heic", "image/heif"),
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
    return (*FORMATS, *((AVIF,) if _reads_avif() else ()), *((HEIF,) if _reads_heif() else ()))


def client_media_types() -> tuple[str, ...]:
    """The same as media types."""
    return tuple(kind for form in client_formats() for kind in _MEDIA_TYPES[form])


def _reads_avif() -> bool:
    from PIL import features

    try:
        return bool(features.check_module("avif"))
    except ValueError:  # an earlier Pillow does not know it
        return False


def _reads_heif() -> bool:
    """Tells Pillow of pillow-heif, where it is installed."""
    try:
        from pillow_heif import options, register_heif_opener
    except ImportError:
        return False
    # Of what lies beside the picture nothing is decoded.
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    register_heif_opener()
    return True
