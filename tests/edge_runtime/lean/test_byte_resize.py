"""Bytes are resized as torchvision resizes them for transformers' processors, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import InterpolationMode, resize

from qwen3vl_edge.edge_runtime.inputs.lean.byte_resize import resize_bytes, weights


@pytest.mark.parametrize("seed", range(4))
def test_any_size_to_any_size(seed: int) -> None:
    """Noise, and pictures of black and white alone, whose edges overshoot most."""
    rng = np.random.default_rng(seed)
    for number in range(40):
        height, width = (int(side) for side in rng.integers(1, 2500 if number % 8 == 0 else 300, 2))
        rows, columns = (32 * int(side) for side in rng.integers(1, 14, 2))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if number % 3 == 0:
            image = np.where(image > 127, 255, 0).astype(np.uint8)
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        expected = resize(tensor, [rows, columns], InterpolationMode.BICUBIC, antialias=True).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(
            resize_bytes(image, rows, columns), expected, f"{image.shape} to {rows}x{columns}"
        )


def test_sums_are_exact() -> None:
    """In float32 where all fit into its 24 bits, else in float64."""
    assert weights(300, 320).blocks[0][2].dtype == np.float32
    assert weights(4000, 64).blocks[0][2].dtype == np.float64
