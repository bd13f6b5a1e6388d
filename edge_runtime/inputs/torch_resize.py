"""Pictures and frames as tensors at another size: as the pixel policy's upstream resizes them.

Both call torchvision's bicubic `resize` with antialias. transformers' processors call the second version of it, which
computes bytes in whole numbers; qwen-vl-utils calls the first, which computes clips in floats, and resizes pictures
with Pillow. On noise they differ by up to 2 levels of 255 (pictures) and by 20 (clips).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.pixels.policy import PixelPolicy
from qwen3vl_edge.edge_runtime.inputs.clip_reader import Resize


def frame_resize(pixels: PixelPolicy) -> Resize:
    """How a clip's frames are resized under a policy."""
    return functools.partial(resize_frames, pixels=pixels)


def resize_frames(frames: NDArray[np.uint8], height: int, width: int, pixels: PixelPolicy) -> NDArray[np.uint8]:
    """uint8 [F, H, W, 3] to uint8 [F, 3, height, width]."""
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    tensor = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    if pixels.resizes_bytes:
        resized = _resize_bytes(tensor, height, width)
    else:
        resized = resize(tensor, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    array: NDArray[np.uint8] = resized.contiguous().numpy()
    return array


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
