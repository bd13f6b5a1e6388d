"""A clip that is a list of pictures.

qwen-vl-utils' `fetch_video` resizes each picture as a picture first (with the merged patch size for a patch's, so by a
grid twice as coarse) and then all of them; transformers' video processor resizes them once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.pixels.policy import PixelPolicy, own_keys
from qwen3vl_edge.edge_runtime.inputs.sources.clip_header import reading

FPS = 2.0  # of frames that do not say, in qwen-vl-utils


def fetch_frames(element: dict[str, Any], pixels: PixelPolicy, patch_size: int) -> tuple[Any, dict[str, Any]]:
    """The frames as qwen-vl-utils makes them, float32 tensor [frames, 3, H, W] of 0 to 255, and their metadata.

    Args:
        element: with a list of PIL images as `video`.
        pixels: its policy bounds each frame.

    Raises:
        InputError: qwen-vl-utils refuses it.
    """
    from qwen_vl_utils.vision_process import fetch_video

    with reading(f"of {len(element['video'])} frames"):
        video, metadata = fetch_video(
            {**own_keys(pixels), **element}, image_patch_size=patch_size, return_video_metadata=True
        )
    return video, metadata


def rgb_frames(element: dict[str, Any], temporal: int) -> tuple[Any, dict[str, Any]]:
    """The frames at their own size, uint8 tensor [frames, 3, H, W], and the metadata that qwen-vl-utils writes.

    Args:
        element: with a list of PIL images as `video`.
        temporal: frames of a temporal patch; the last one is repeated to fill it.

    Raises:
        InputError: frames of more than one size.
    """
    import torch
    from qwen_vl_utils.vision_process import to_rgb

    pictures = element["video"]
    if len(sizes := dict.fromkeys(picture.size for picture in pictures)) > 1:
        raise InputError(
            "the frames of a clip have more than one size",
            field="video",
            expected="one",
            got=", ".join(f"{width}x{height}" for width, height in [*sizes][:4]),
        )
    frames = [torch.from_numpy(np.array(to_rgb(picture))).permute(2, 0, 1) for picture in pictures]
    frames += frames[-1:] * (-len(frames) % temporal)
    shown = float(element.get("sample_fps", FPS))
    fps = float(element.get("raw_fps", shown))
    metadata = {
        "fps": fps,
        "frames_indices": [*range(len(frames))],
        "total_num_frames": len(frames) / shown * fps,
    }
    return torch.stack(frames), metadata
