"""Pictures and frames as tensors at another size: as the pixel policy's upstream resizes them.

Both call torchvision's bicubic `resize` with antialias. transformers' processors call the second version of it, which
computes bytes in whole numbers; qwen-vl-utils calls the first, which computes clips in floats, and resizes pictures
with Pillow. On noise they differ by up to 2 levels of 255 (pictures) and by 20 (clips).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qwen3vl_edge.contract.pixels.policy import PixelPolicy


def resize_frames(video: Any, height: int, width: int, pixels: PixelPolicy) -> Any:
    """float32 tensor [frames, 3, height, width] of 0 to 255.

    Args:
        video: uint8 [frames, 3, H, W]; or float32 of 0 to 255, of frames that qwen-vl-utils has resized.
    """
    if pixels.resizes_bytes:
        return _resize_bytes(video, height, width).float()
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    resized = resize(video, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized.clamp(0, 255).round() if resized.is_floating_point() else resized.float()


def resize_picture(image: Any, height: int, width: int) -> Any:
    """A PIL image in RGB at another size, as transformers' image processor resizes it."""
    import torch
    from PIL import Image

    resized = _resize_bytes(torch.from_numpy(np.array(image)).permute(2, 0, 1), height, width)
    return Image.fromarray(resized.permute(1, 2, 0).contiguous().numpy())


def _resize_bytes(tensor: Any, height: int, width: int) -> Any:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    return resize(tensor, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
