"""A picture of any of Pillow's modes as a person sees it: RGB of 8 bits, on white where it is transparent.

`convert("RGB")` of Pillow, which transformers and qwen-vl-utils use, clips grey of more than 8 bits to 255 and drops
transparency, so that what lay hidden below it shows. docs/reference/picture-modes.md has the whole table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# Of TIFF 6.0, section 8 and 19.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT, _S_MIN_SAMPLE, _S_MAX_SAMPLE = 258, 262, 339, 340, 341
_WHITE_IS_ZERO = 0
_FULL_16 = 65_535
# Formats whose grey of more than 8 bits Pillow brings to 16 whole bits.
_SCALED_TO_16 = ("PNG", "PPM", "JPEG2000")
_VALUES_AT_ONCE = 1 << 20
_PNG_GREY_SCALE = {"L;2": 85, "L;4": 17}  # from 2 and 4 bits to 8


@dataclass(frozen=True)
class Levels:
    """Which values of a grey picture are black and white.

    Attributes:
        black, white: values; darker and lighter ones are black and white too.
        inverted: black is the highest value (TIFF's WhiteIsZero, which Pillow leaves as it is beyond 8 bits).
    """

    black: float
    white: float
    inverted: bool = False

    def __str__(self) -> str:
        low, high = f"{self.black:g}", f"{self.white:g}"
        return f"{high}..{low}" if self.inverted else f"{low}..{high}"


def is_deep_grey(mode: str) -> bool:
    """Whether a picture of this mode is grey of more than 8 bits."""
    return mode in ("I", "F") or mode.startswith("I;")


def prepare_transparency(image: Image) -> None:
    """Scale the transparent colour of an opened PNG file as Pillow scales its pixels; before they are decoded.

    Pillow keeps the colour of a `tRNS` chunk in the file's bits, and compares it with pixels of 8.
    """
    colour = image.info.get("transparency")
    if image.format != "PNG" or colour is None:
        return
    tiles: list[Any] = getattr(image, "tile", [])
    raw_mode = tiles[0][3] if tiles else ""
    if isinstance(colour, int) and raw_mode in _PNG_GREY_SCALE:
        image.info["transparency"] = min(colour * _PNG_GREY_SCALE[raw_mode], 255)
    elif isinstance(colour, tuple) and raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def as_seen(image: Image) -> tuple[Image, Levels | None]:
    """A decoded picture as RGB; the same object where it is RGB without a transparent colour.

    Returns:
        The picture, which has no transparent colour left; and of grey of more than 8 bits its levels.
    """
    levels = None
    if is_deep_grey(image.mode):
        values = _values(image)
        levels = grey_levels(image, values)
        transparent = image.info.get("transparency")
        grey = _grey(values, levels)
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        return _rgb_of_grey(grey), levels
    if not image.has_transparency_data:
        return (image if image.mode == "RGB" else image.convert("RGB")), None
    return _on_white(image), None


def _values(image: Image) -> Any:
    """Samples; of TIFF's unsigned 32 bits, which Pillow has as signed ones, what the file says."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    is_unsigned = _number(tags.get(_SAMPLE_FORMAT, 1)) == 1 and _number(tags.get(_BITS_PER_SAMPLE)) == 32
    return values.view(np.uint32) if image.mode == "I" and is_unsigned else values


def grey_levels(image: Image, values: Any) -> Levels:
    """Black and white of a decoded picture of mode I, F or I;16, by what its file declares, else by its values.

    - TIFF's SMinSampleValue and SMaxSampleValue, where a file has them;
    - 16 bits, or as many as a TIFF file has bits in a sample, where the mode is I;16 or the format scales to 16;
    - else the smallest of 0 to 1 (mode F alone), 0 to 255, and 0 to 65,535 that holds all values;
    - else from the lowest to the highest value.
    """
    tags = getattr(image, "tag_v2", {})
    inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    low, high = _number(tags.get(_S_MIN_SAMPLE)), _number(tags.get(_S_MAX_SAMPLE))
    if low is not None and high is not None and low < high:
        return Levels(low, high, inverted)
    if image.mode.startswith("I;"):
        bits = _number(tags.get(_BITS_PER_SAMPLE))
        return Levels(0, _FULL_16 if bits is None or not 8 < bits < 16 else 2 ** int(bits) - 1, inverted)
    if image.format in _SCALED_TO_16:
        return Levels(0, _FULL_16)
    lowest, highest = _extremes(values)
    for white in (1, 255, _FULL_16):
        if lowest >= 0 and highest <= white and (image.mode == "F" or white > 1):
            return Levels(0, white, inverted)
    return Levels(lowest, highest, inverted)


def _number(value: Any) -> float | None:
    """A TIFF tag's first value."""
    if isinstance(value, (tuple, list)):
        value = value[0] if value else None
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _extremes(values: Any) -> tuple[float, float]:
    """The lowest and highest finite value; zeros where there is none."""
    lowest, highest = np.inf, -np.inf
    for block in _blocks(values):
        finite = block[np.isfinite(block)]
        if finite.size:
            lowest, highest = min(lowest, float(finite.min())), max(highest, float(finite.max()))
    return (lowest, highest) if lowest <= highest else (0.0, 0.0)


def _grey(values: Any, levels: Levels) -> Any:
    """Bytes: 0 at black, 255 at white, rounded to the nearest (PNG, section 13.12); no number is black."""
    if values.dtype.itemsize == 2 and values.dtype.kind == "u":
        return _bytes_of(np.arange(_FULL_16 + 1), levels)[values]
    grey = np.empty(values.shape, np.uint8)
    for block, into in zip(_blocks(values), _blocks(grey), strict=True):
        into[...] = _bytes_of(block, levels)
    return grey


def _bytes_of(values: Any, levels: Levels) -> Any:
    span = levels.white - levels.black
    with np.errstate(all="ignore"):
        scaled = (values.astype(np.float64) - levels.black) * (255.0 / span if span > 0 else 0.0)
        grey = np.floor(np.nan_to_num(scaled, nan=0.0).clip(0.0, 255.0) + 0.5).astype(np.uint8)
    return 255 - grey if levels.inverted else grey


def _blocks(values: Any) -> list[Any]:
    """Rows in pieces, so that wide copies of them stay small."""
    rows = max(1, _VALUES_AT_ONCE // max(1, values.shape[1]))
    return [values[start : start + rows] for start in range(0, len(values), rows)]


def _rgb_of_grey(grey: Any) -> Image:
    from PIL import Image

    return Image.fromarray(grey).convert("RGB")


def _on_white(image: Image) -> Image:
    """As qwen-vl-utils pastes RGBA, to the bit."""
    from PIL import Image

    if image.mode == "La":  # which Pillow converts to nothing else
        image = image.convert("LA")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white
