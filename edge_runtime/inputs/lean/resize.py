"""A picture to RGB at its bucket's size, bit-identical to qwen-vl-utils' `fetch_image`.

Formulas: `to_rgb` and `fetch_image` of qwen-vl-utils 0.0.14 (`vision_process.py`).
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


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB: a picture of mode RGBA on white, every other mode as Pillow converts it; itself where it is RGB."""
    if image.mode == "RGB":
        return image  # `convert` would copy it
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def on_white(image: Image.Image) -> Image.Image:
    """transformers' `convert_to_rgb` for an RGB picture that still has a transparent colour.

    Pillow keeps the transparent colour of a palette or PNG file as RGB metadata, through the resize too, and the HF
    processor then makes the pixels of exactly that colour white.
    """
    if image.info.get("transparency") is None:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, (255,) * 4), image.convert("RGBA")).convert("RGB")


def bucket_image(image: Image.Image, element: dict[str, Any], policy: BucketPolicy) -> tuple[Image.Image, BucketChoice]:
    """The picture of a message's part at its bucket's size, and the bucket.

    Args:
        element: the part, with `min_pixels`, `max_pixels`, or `resized_height` and `resized_width`.

    Raises:
        InputError: a picture without a usable size.
        BucketError: no bucket serves it.
    """
    try:
        image = to_rgb(image)
        height, width = _native_size(element, image, policy.geometry)
        choice = policy.choose(policy.geometry.image_grid(height, width))
        if not choice.exact:
            height, width = policy.geometry.pixels(choice.grid)
        return on_white(image.resize((width, height))), choice  # Pillow's default for RGB is bicubic
    except ContractError:
        raise
    except (OSError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"picture cannot be preprocessed ({error})", field="image") from None


def _native_size(element: dict[str, Any], image: Image.Image, geometry: PatchGeometry) -> tuple[int, int]:
    if "resized_height" in element and "resized_width" in element:
        return smart_resize(element["resized_height"], element["resized_width"], geometry.factor)
    least, most = element.get("min_pixels"), element.get("max_pixels")
    return smart_resize(image.height, image.width, geometry.factor, least, most)
