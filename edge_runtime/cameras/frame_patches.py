"""Frames to patches, bit-exact to what the pixel policy's upstream returns for the same frames in a file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid, PatchGeometry
from qwen3vl_edge.contract.pixels.policy import PixelPolicy
from qwen3vl_edge.edge_runtime.inputs.torch_resize import resize_frames


def native_grid(height: int, width: int, frames: int, geometry: PatchGeometry, pixels: PixelPolicy) -> Grid:
    """The grid of one temporal patch of a clip of such frames.

    Args:
        frames: of the full window: a window that fills keeps its size.
    """
    return geometry.image_grid(*pixels.clip_size(frames, height, width))


def resize_frame(rgb: NDArray[np.uint8], height: int, width: int, pixels: PixelPolicy) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] to uint8 [3, height, width], as a clip's frames are resized."""
    resized: NDArray[np.uint8] = resize_frames(rgb[None], height, width, pixels)[0]
    return resized


def patchify(frames: NDArray[np.uint8], hf: Any) -> EncoderInput:
    """Frames, uint8 [F, 3, H, W], through the HF video processor; a clip of F / 2 temporal patches."""
    import torch

    outputs = hf.video_processor(
        videos=[torch.from_numpy(frames).float()], do_resize=False, do_sample_frames=False, return_tensors="pt"
    )
    return EncoderInput(Grid(*outputs["video_grid_thw"][0].tolist()), outputs["pixel_values_videos"].numpy())
