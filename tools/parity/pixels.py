"""`pixel_values` back to the encoder's RGB input, the inverse of `patch_values`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import Preprocessing, VisionSpec


def to_rgb(
    pixel_values: NDArray[np.float32], grid: Grid, vision: VisionSpec, preprocessing: Preprocessing
) -> NDArray[np.uint8]:
    """uint8 [frames, H, W, 3] of `pixel_values` [t·h·w, 3·temporal·patch²]; an image has its picture twice."""
    merge, patch, temporal = vision.merge_size, vision.patch_size, vision.temporal_patch_size
    rows, columns = grid.h // merge, grid.w // merge
    x = pixel_values.reshape(grid.t, rows, columns, merge, merge, vision.in_channels, temporal, patch, patch)
    # t, row, column, row in block, column in block, channel, frame, y, x -> t, frame, row.., y, column.., x, channel
    x = x.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
    x = x.reshape(grid.t * temporal, grid.h * patch, grid.w * patch, vision.in_channels)
    mean, std = _scaled(preprocessing)
    return np.asarray(np.clip(np.rint(x * std + mean), 0, 255), dtype=np.uint8)


def _scaled(preprocessing: Preprocessing) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and std in bytes: rescaling folded into both, as transformers' `rescale_and_normalize` does."""
    scale = np.float32(1 / preprocessing.rescale_factor)
    mean = np.array(preprocessing.image_mean, np.float32) * scale
    return mean, np.array(preprocessing.image_std, np.float32) * scale
