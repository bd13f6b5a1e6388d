"""RGB pictures at their buckets' size, and a clip's frames, resized as the pixel policy's upstream resizes it.

transformers' image processor: `byte_resize.py`; `fetch_image` of qwen-vl-utils 0.0.14 (`vision_process.py`): Pillow;
its `fetch_video`: `clip_resize.py`. tests/edge_runtime/lean/test_pixels.py and test_clips.py compare them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen3vl_edge.contract.bundle.buckets import BucketChoice
from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.contract.pixels.policy import PixelPolicy
from qwen3vl_edge.edge_runtime.inputs.clip_reader import Resize
from qwen3vl_edge.edge_runtime.inputs.lean.byte_resize import resize_bytes
from qwen3vl_edge.edge_runtime.inputs.lean.clip_resize import resize_frames
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget


def bucket_image(
    image: Image.Image, element: dict[str, Any], policy: BucketPolicy, budget: MediaBudget
) -> tuple[NDArray[np.uint8], BucketChoice]:
    """The picture of a message's part at its bucket's size, uint8 [H, W, 3], and the bucket.

    Args:
        image: in RGB.
        element: the part, with `min_pixels`, `max_pixels`, or `resized_height` and `resized_width`.
        budget: pays for its visual tokens before it is resized.

    Raises:
        InputError: a picture without a usable size.
        LimitError: too many visual tokens.
        BucketError: no bucket serves it.
    """
    try:
        height, width = policy.pixels.picture_size(image.height, image.width, element)
        choice = policy.choose(policy.geometry.image_grid(height, width))
        budget.add_visual_tokens(policy.tokens(choice.grid))
        if not choice.exact:
            height, width = policy.geometry.pixels(choice.grid)
        if policy.pixels.resizes_bytes:
            return resize_bytes(np.asarray(image), height, width), choice
        return np.asarray(image.resize((width, height))), choice  # Pillow's default for RGB is bicubic
    except ContractError:
        raise
    except (OSError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"picture cannot be preprocessed ({error})", field="image") from None


def frame_resize(pixels: PixelPolicy) -> Resize:
    """How a clip's frames are resized under a policy."""
    return _resize_each if pixels.resizes_bytes else resize_frames


def _resize_each(frames: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.stack([resize_bytes(frame, height, width).transpose(2, 0, 1) for frame in frames])
