"""uint8 frames to the encoder's patches, as the checkpoint's processor lays them out, without transformers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import Preprocessing, VisionSpec


def patch_values(
    frames: NDArray[np.uint8], grid: Grid, spec: VisionSpec, preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """`pixel_values` float32 [patches, patch values] of uint8 frames at the grid's size.

    Layout of `Qwen2VLImageProcessor.patchify` and `Qwen3VLVideoProcessor.patchify`: patches in
    merge-block order; in a row channel, frame of the temporal patch, y, x. One frame is repeated.
    """
    scale = np.float32(1 / preprocessing.rescale_factor)
    mean = np.array(preprocessing.image_mean, np.float32) * scale
    std = np.array(preprocessing.image_std, np.float32) * scale
    if frames.shape[0] == 1:
        frames = np.repeat(frames, spec.temporal_patch_size, axis=0)
    merge, patch = spec.merge_size, spec.patch_size
    blocks = ((frames.astype(np.float32) - mean) / std).reshape(
        grid.t, spec.temporal_patch_size, grid.h // merge, merge, patch, grid.w // merge, merge, patch, spec.in_channels
    )
    # [t, block row, block column, row, column, channel, frame, y, x]
    ordered = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return np.ascontiguousarray(ordered.reshape(grid.patches, spec.patch_values))
