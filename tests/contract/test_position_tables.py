"""qwen3vl_edge.contract.bundle.position_tables against the transformers functions that it restates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionRotaryEmbedding, rotate_half
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.position_tables import patch_rows_columns, position_interpolation, rotary_cos_sin

GRIDS = [Grid(1, 28, 28), Grid(1, 30, 40), Grid(1, 2, 2), Grid(1, 6, 98), Grid(3, 4, 10), Grid(1, 48, 48)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("positions", [2304, 256, 9])
def test_interpolation_is_exactly_upstreams(grid: Grid, positions: int) -> None:
    indices, weights = position_interpolation(grid, 2, positions)
    theirs = get_vision_interpolation_indices_and_weights(
        torch.tensor([grid.as_list()]), int(positions**0.5), align_corners=True, spatial_merge_size=2
    )
    np.testing.assert_array_equal(np.tile(indices, (grid.t, 1)), theirs[0].numpy())
    np.testing.assert_array_equal(np.tile(weights, (grid.t, 1)), theirs[1].numpy())


@pytest.mark.parametrize(("grid", "merge"), [(grid, 2) for grid in GRIDS] + [(Grid(2, 6, 9), 3)])
def test_patch_order_is_exactly_upstreams(grid: Grid, merge: int) -> None:
    theirs = get_vision_position_ids(torch.tensor([grid.as_list()]), merge).numpy()
    np.testing.assert_array_equal(np.tile(patch_rows_columns(grid, merge), (grid.t, 1)), theirs)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(("width", "heads"), [(1024, 16), (1152, 16), (48, 4)])
def test_rotary_turns_as_upstreams(grid: Grid, width: int, heads: int) -> None:
    config = Qwen3VLVisionConfig(hidden_size=width, num_heads=heads)
    place = torch.from_numpy(patch_rows_columns(grid, 2))
    theirs_cos, theirs_sin = Qwen3VLVisionRotaryEmbedding(config)(torch.zeros(1), place)
    cos, sin = rotary_cos_sin(grid, 2, width // heads)
    # pow of numpy and of torch differ in the last bit of a frequency, which a far position multiplies.
    np.testing.assert_allclose(cos, theirs_cos.numpy(), atol=1e-5, rtol=0)
    x = torch.randn(len(place), width // heads, generator=torch.Generator().manual_seed(0))
    swapped = np.concatenate(np.split(x.numpy(), 2, axis=-1)[::-1], axis=-1)
    np.testing.assert_allclose(swapped * sin, (rotate_half(x) * theirs_sin).numpy(), atol=4e-5, rtol=0)
