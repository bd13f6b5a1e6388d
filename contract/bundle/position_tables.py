"""Per-bucket constants of the encoder, as numpy arrays: functions of the grid and the config only.

The exporter bakes them into a fixed-bucket graph; the edge feeds them to the dynamic-shape graph.
Patches are in merge-block order, as the HF processor lays them out: block row, block column, row
in block, column in block. Formulas: transformers `vision_utils.py`
(`get_vision_interpolation_indices_and_weights`, `get_vision_position_ids`) and
`modeling_qwen3_vl.py` (`Qwen3VLVisionRotaryEmbedding`), version 5.23.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import VisionSpec


def position_inputs(vision: VisionSpec, grid: Grid) -> dict[str, NDArray[Any]]:
    """The tables that the dynamic-shape graph takes as inputs, by name.

    `position_indices` int64 and `position_weights` float32 [P, 4], `rotary_cos` and `rotary_sin` float32
    [P, head width], P the patches of a frame.
    """
    indices, weights = position_interpolation(grid, vision.merge_size, vision.num_position_embeddings)
    cos, sin = rotary_cos_sin(grid, vision.merge_size, vision.head_dim, vision.rope_theta)
    return {"position_indices": indices, "position_weights": weights, "rotary_cos": cos, "rotary_sin": sin}


def patch_rows_columns(grid: Grid, merge_size: int) -> NDArray[np.int64]:
    """Row and column of each patch of one frame: int64 [h·w, 2] in merge-block order."""
    rows, columns = np.meshgrid(np.arange(grid.h), np.arange(grid.w), indexing="ij")
    blocks = (grid.h // merge_size, merge_size, grid.w // merge_size, merge_size)
    ordered = [axis.reshape(blocks).transpose(0, 2, 1, 3).reshape(-1) for axis in (rows, columns)]
    return np.stack(ordered, axis=-1).astype(np.int64)


def _axis_taps(index: NDArray[np.int64], size: int, side: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Two taps and weights per position on one axis: bilinear, align_corners=True, in fp32 as upstream."""
    source = index.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    floor = np.floor(source)
    taps = np.clip(floor.astype(np.int64)[:, None] + np.arange(2), 0, side - 1)
    distance = np.abs(source[:, None] - floor[:, None] - np.arange(2, dtype=np.float32))
    return taps, np.clip(1 - distance, 0, None).astype(np.float32)


def position_interpolation(
    grid: Grid, merge_size: int, num_position_embeddings: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """How the learned square position table is resampled to one frame of the grid.

    Returns:
        indices int64 [h·w, 4] into the flattened table, and weights float32 [h·w, 4].
    """
    side = int(num_position_embeddings**0.5)
    place = patch_rows_columns(grid, merge_size)
    row_taps, row_weights = _axis_taps(place[:, 0], grid.h, side)
    column_taps, column_weights = _axis_taps(place[:, 1], grid.w, side)
    indices = (row_taps[:, :, None] * side + column_taps[:, None, :]).reshape(-1, 4)
    weights = (row_weights[:, :, None] * column_weights[:, None, :]).reshape(-1, 4)
    return indices, weights


def rotary_frequencies(head_dim: int, theta: float = 10000.0) -> NDArray[np.float32]:
    """Inverse frequencies of the axial rotary embedding: float32 [head_dim / 4]."""
    spatial = head_dim // 2
    exponents = np.arange(0, spatial, 2, dtype=np.float32) / np.float32(spatial)
    return np.asarray(1.0 / np.power(np.float32(theta), exponents), dtype=np.float32)


def rotary_table(positions: int, head_dim: int, theta: float = 10000.0) -> NDArray[np.float32]:
    """Angles of rows or columns 0 … positions-1: float32 [positions, head_dim / 4]."""
    angles: NDArray[np.float32] = np.outer(np.arange(positions, dtype=np.float32), rotary_frequencies(head_dim, theta))
    return angles


def rotary_cos_sin(
    grid: Grid, merge_size: int, head_dim: int, theta: float = 10000.0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and signed sin of one frame: float32 [h·w, head_dim] each.

    The sign of rotate-half is folded into the sine, so that the graph computes
    `x * cos + concat(x2, x1) * sin` for x = concat(x1, x2).
    """
    place = patch_rows_columns(grid, merge_size)
    angles = rotary_table(max(grid.h, grid.w), head_dim, theta)
    half = np.concatenate([angles[place[:, 0]], angles[place[:, 1]]], axis=-1)
    cos, sin = np.cos(half), np.sin(half)
    return np.concatenate([cos, cos], axis=-1), np.concatenate([-sin, sin], axis=-1)
