"""An RGB picture at its bucket's size, resized as qwen-vl-utils' `fetch_image` resizes.

Formulas: `fetch_image` of qwen-vl-utils 0.0.14 (`vision_process.py`); the size is the pixel policy's.
tests/edge_runtime/lean/test_pixels.py compares both.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from qwen3vl_edge.contract.bundle.buckets import BucketChoice
from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy


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
        height, width = policy.pixels.picture_size(image.height, image.width, element)
        choice = policy.choose(policy.geometry.image_grid(height, width))
        if not choice.exact:
            height, width = policy.geometry.pixels(choice.grid)
        return image.resize((width, height)), choice  # Pillow's default for RGB is bicubic
    except ContractError:
        raise
    except (OSError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"picture cannot be preprocessed ({error})", field="image") from None
