"""The tables that the dynamic-shape graph takes as inputs: constants of a grid."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.contract.bundle.position_tables import position_interpolation, rotary_cos_sin


def position_inputs(vision: VisionSpec, grid: Grid) -> dict[str, NDArray[Any]]:
    """`position_indices` int64 and `position_weights` [P, 4], `rotary_cos` and `rotary_sin` [P, head width]."""
    indices, weights = position_interpolation(grid, vision.merge_size, vision.num_position_embeddings)
    cos, sin = rotary_cos_sin(grid, vision.merge_size, vision.head_dim, vision.rope_theta)
    return {"position_indices": indices, "position_weights": weights, "rotary_cos": cos, "rotary_sin": sin}
