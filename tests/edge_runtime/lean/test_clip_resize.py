"""The lean resize of frames is torchvision's to the bit, however many bytes lie at half a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qwen3vl_edge.edge_runtime.inputs import torch_resize
from qwen3vl_edge.edge_runtime.inputs.lean.clip_resize import resize_frames, taps
from tests.support.pixel_policies import QWEN_PIXELS

SIZES = [
    ((120, 160), (96, 128)),
    ((97, 131), (64, 192)),
    ((64, 96), (32, 48)),  # to the half: many bytes at half a step
    ((300, 64), (32, 64)),
    ((61, 300), (352, 32)),
    ((1, 1), (32, 64)),
    ((720, 1280), (576, 1024)),
    ((96, 128), (96, 128)),
    ((100, 128), (96, 128)),
]


def drawn(kind: str, height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(height * width)
    noise = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    shades = np.broadcast_to(np.indices((height, width)).sum(0)[None, :, :, None] * [1, 2, 3], noise.shape)
    few = noise % 3 + 100
    return {"noise": noise, "shades": (shades % 256).astype(np.uint8), "edges": noise // 128 * 255, "few": few}[kind]


@pytest.mark.parametrize("kind", ["noise", "shades", "edges", "few"])
@pytest.mark.parametrize(("size", "resized"), SIZES)
def test_every_byte_is_torchvisions(kind: str, size: tuple[int, int], resized: tuple[int, int]) -> None:
    frames = drawn(kind, *size)
    found = resize_frames(frames, *resized)
    assert found.dtype == np.uint8
    assert np.array_equal(found, torch_resize.resize_frames(frames, *resized, QWEN_PIXELS))


@pytest.mark.parametrize(("size", "resized"), [(160, 96), (97, 64), (64, 128), (1920, 1184), (7, 32), (1, 32)])
def test_weights_are_torchs(size: int, resized: int) -> None:
    """Of which a resized identity matrix shows each alone."""
    identity = torch.eye(size)[None, None]
    shown = torch.nn.functional.interpolate(identity, (size, resized), mode="bicubic", antialias=True)[0, 0].numpy()
    found = np.zeros((resized, size), np.float32)
    own = taps(size, resized)
    for row, first, count, weights in zip(found, own.first, own.count, own.weights, strict=True):
        row[first : first + count] = weights[:count]
    assert np.array_equal(found, shown.T)
