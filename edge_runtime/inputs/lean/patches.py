"""RGB bytes to patches, bit-identical to those of the HF image processor.

transformers' `rescale_and_normalize` folds rescaling into mean and std and works in float32, value by value; so each
channel has 256 possible values, and a table of them is all that is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import Preprocessing, VisionSpec


def normalised_bytes(preprocessing: Preprocessing) -> NDArray[np.float32]:
    """float32 [channels, 256]: what each byte of each channel becomes, (byte - mean) / std."""
    return byte_table(preprocessing.image_mean, preprocessing.image_std, preprocessing.rescale_factor)


def byte_table(mean: Sequence[float], std: Sequence[float], rescale_factor: float) -> NDArray[np.float32]:
    """The same of these figures."""
    scale = np.float32(1 / rescale_factor)
    means = np.array(mean, np.float32)[:, None] * scale
    deviations = np.array(std, np.float32)[:, None] * scale
    return np.asarray((np.arange(256, dtype=np.float32)[None] - means) / deviations, dtype=np.float32)


def patch_values(
    pixels: NDArray[np.uint8], grid: Grid, spec: VisionSpec, table: NDArray[np.float32]
) -> NDArray[np.float32]:
    """`pixel_values` float32 [patches, channels·temporal·patch²] of one picture.

    Layout of `Qwen2VLImageProcessor.patchify`: patches in merge-block order; in a row channel, frame of the temporal
    patch (the same picture each time), y, x.

    Args:
        pixels: uint8 [H, W, channels] at the grid's size.
        table: of `normalised_bytes`.
    """
    merge, patch, channels, frames = spec.merge_size, spec.patch_size, spec.in_channels, spec.temporal_patch_size
    blocks = pixels.reshape(grid.h // merge, merge, patch, grid.w // merge, merge, patch, channels)
    # block row, block column, row in block, column in block, channel, y, x: still bytes, a quarter of the traffic
    ordered = np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(grid.patches, channels, 1, patch**2)
    values = np.empty((grid.patches, channels, frames, patch**2), np.float32)
    for channel in range(channels):
        values[:, channel] = table[channel][ordered[:, channel]]
    return values.reshape(grid.patches, spec.patch_values)


def clip_patch_values(
    frames: NDArray[np.uint8], grid: Grid, spec: VisionSpec, table: NDArray[np.float32]
) -> NDArray[np.float32]:
    """`pixel_values_videos` float32 [patches, channels·temporal·patch²] of one clip.

    Layout of `Qwen3VLVideoProcessor.patchify`: temporal patches, in each patches in merge-block order; in a row
    channel, frame, y, x. The last frame is repeated where a temporal patch lacks frames.

    Args:
        frames: uint8 [F, channels, H, W] at the grid's size.
        table: of `byte_table`.
    """
    merge, patch, channels, together = spec.merge_size, spec.patch_size, spec.in_channels, spec.temporal_patch_size
    if missing := -len(frames) % together:
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, 0)])
    blocks = frames.reshape(
        grid.t, together, channels, grid.h // merge, merge, patch, grid.w // merge, merge, patch
    ).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    ordered = np.ascontiguousarray(blocks).reshape(grid.patches, channels, -1)
    values = np.empty(ordered.shape, np.float32)
    for channel in range(channels):
        values[:, channel] = table[channel][ordered[:, channel]]
    return values.reshape(grid.patches, spec.patch_values)
