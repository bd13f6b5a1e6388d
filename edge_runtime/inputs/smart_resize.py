"""The size that the model gets a picture or a clip's frames at.

`smart_resize` of qwen-vl-utils 0.0.14 (`vision_process.py`), and of transformers 5.24 (`image_processing_qwen2_vl.py`)
where the two differ: a long, narrow picture with few pixels keeps at least one visual token a side, for which
qwen-vl-utils computes 0. tests/edge_runtime/inputs/test_smart_resize.py compares all three.
"""

from __future__ import annotations

import math

MAX_RATIO = 200
MIN_TOKENS, MAX_TOKENS = 4, 16384


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int | None = None, max_pixels: int | None = None
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
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_RATIO:
        raise ValueError(f"absolute aspect ratio must be smaller than {MAX_RATIO}, got {ratio}")
    # Python rounds halves to even there, and so must this.
    rows, columns = (max(factor, round(side / factor) * factor) for side in (height, width))
    if rows * columns > highest:
        shrink = math.sqrt((height * width) / highest)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
        return rows, columns
    if rows * columns < lowest:
        grow = math.sqrt(lowest / (height * width))
        return math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return rows, columns
