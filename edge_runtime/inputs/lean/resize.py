"""An RGB picture at its bucket's size, bit-identical to qwen-vl-utils' `fetch_image`.

Formulas: `fetch_image` of qwen-vl-utils 0.0.14 (`vision_process.py`).
tests/edge_runtime/lean/test_pixels.py compares both.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from qwen3vl_edge.contract.bundle.buckets import BucketChoice
from qwen3vl_edge.contract.bundle.grid import PatchGeometry
from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy
from qwen3vl_edge.edge_runtime.inputs.smart_resize import smart_resize


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
