"""An RGB picture at its bucket's size, bit-identical to qwen-vl-utils' `fetch_image`.

Formulas and constants: `smart_resize` and `fetch_image` of qwen-vl-utils 0.0.14 (`vision_process.py`).
tests/edge_runtime/lean/test_pixels.py compares both.
"""

from __future__ import annotations

import math
from typing import Any

from PIL import Image

from qwen3vl_edge.contract.bundle.buckets import BucketChoice
from qwen3vl_edge.contract.bundle.grid import PatchGeometry
from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy

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
        return math.floor(height / shrink / factor) * factor, math.floor(width / shrink / factor) * factor
    if rows * columns < lowest:
        grow = math.sqrt(lowest / (height * width))
        return math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return rows, columns


def bucket_image(image: Image.Image, element: dict[str, Any], policy: BucketPolicy) -> tuple[Image.Image, BucketChoice]:
    """The picture of a message's part at its bucket's size, and the bucket.

    Args:
        image: in RGB.
        element: the part, with `min_pixels`, `max_pixels`, or `resized_height` and `resized_width`.

    Raises:
        InputError: a picture without a usable size.
        BucketError: no bucket serves it.
    """
    try:
        height, width = _native_size(element, image, policy.geometry)
        choice = policy.choose(policy.geometry.image_grid(height, width))
        if not choice.exact:
            height, width = policy.geometry.pixels(choice.grid)
            _check_bucket(choice, smart_resize(height, width, policy.geometry.factor), policy.geometry)
        return image.resize((width, height)), choice  # Pillow's default for RGB is bicubic
    except ContractError:
        raise
    except (OSError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"picture cannot be preprocessed ({error})", field="image") from None


def _native_size(element: dict[str, Any], image: Image.Image, geometry: PatchGeometry) -> tuple[int, int]:
    if "resized_height" in element and "resized_width" in element:
        return smart_resize(element["resized_height"], element["resized_width"], geometry.factor)
    least, most = element.get("min_pixels"), element.get("max_pixels")
    return smart_resize(image.height, image.width, geometry.factor, least, most)


def _check_bucket(choice: BucketChoice, size: tuple[int, int], geometry: PatchGeometry) -> None:
    if size != geometry.pixels(choice.grid):
        raise InputError(
            "a picture cannot be resized to the bucket",
            field="buckets",
            expected=str(choice.grid),
            got=str(geometry.image_grid(*size)),
            remedy="Use buckets of at least 4 visual tokens.",
        )
