"""The size that the model gets a picture or a clip's frames at.

`smart_resize` is that of qwen-vl-utils 0.0.14 (`vision_process.py`), and of transformers 5.24 where the two differ: a
long, narrow picture with few pixels keeps at least one visual token a side, for which qwen-vl-utils computes 0.
`processor_resize` and `clip_resize` are those of transformers' image and video processors
(`image_processing_qwen2_vl.py`, `video_processing_qwen3_vl.py`). tests/contract/test_pixel_policy.py and
tests/edge_runtime/inputs/test_smart_resize.py compare all of them.
"""

from __future__ import annotations

import math

MAX_RATIO = 200
MIN_TOKENS, MAX_TOKENS = 4, 16384


def smart_resize(
    height: int, width: int, factor: int, min_pixels: float | None = None, max_pixels: float | None = None
) -> tuple[int, int]:
    """The model's input size, in multiples of `factor`, for a picture of height × width pixels.

    Args:
        min_pixels, max_pixels: of the whole picture; None for 4 and 16384 visual tokens.

    Raises:
        ValueError: sides too unequal, or min_pixels above max_pixels.
    """
    highest = MAX_TOKENS * factor**2 if max_pixels is None else max_pixels
    lowest = MIN_TOKENS * factor**2 if min_pixels is None else min_pixels
    if highest < lowest:
        raise ValueError(f"max_pixels {highest} must not be below min_pixels {lowest}")
    _check_ratio(height, width)
    # Python rounds halves to even there, and so must this.
    rows, columns = (max(factor, round(side / factor) * factor) for side in (height, width))
    return _within(rows, columns, height, width, factor, (rows * columns, height * width), (lowest, highest))


def processor_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The same of transformers' image processor: a side of less than half a visual token counts as none at first.

    Raises:
        ValueError: sides too unequal.
    """
    _check_ratio(height, width)
    rows, columns = (round(side / factor) * factor for side in (height, width))
    return _within(rows, columns, height, width, factor, (rows * columns, height * width), (min_pixels, max_pixels))


def clip_resize(
    frames: int, height: int, width: int, factor: int, temporal: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The same of transformers' video processor, where the limits are of all frames together.

    Args:
        frames: those that are sampled.
        temporal: frames of a temporal patch; a clip of fewer is taken as one of as many.

    Raises:
        ValueError: sides too unequal.
    """
    frames = max(frames, temporal)
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_ratio(height, width)
    rows, columns, deep = (
        round(side / unit) * unit for side, unit in ((height, factor), (width, factor), (frames, temporal))
    )
    pixels = (deep * rows * columns, frames * height * width)
    return _within(rows, columns, height, width, factor, pixels, (min_pixels, max_pixels))


def _within(
    rows: int,
    columns: int,
    height: int,
    width: int,
    factor: int,
    pixels: tuple[int, int],
    limits: tuple[float, float],
) -> tuple[int, int]:
    """The rounded size where it is within the limits, else the sides scaled to them.

    Args:
        pixels: of the rounded size and of the original.
    """
    (rounded, original), (lowest, highest) = pixels, limits
    if rounded > highest:
        shrink = math.sqrt(original / highest)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif rounded < lowest:
        grow = math.sqrt(lowest / original)
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def _check_ratio(height: int, width: int) -> None:
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_RATIO:
        raise ValueError(f"absolute aspect ratio must be smaller than {MAX_RATIO}, got {ratio}")
