"""Pixels to check a graph with: pictures with edges, gradients, text and grain, in the HF processor's layout."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import Preprocessing, VisionSpec
from qwen3vl_edge.contract.bundle.patch_values import patch_values


def drawn_input(grid: Grid, spec: VisionSpec, preprocessing: Preprocessing, seed: int) -> EncoderInput:
    """A synthetic picture or clip as both kinds of graph take it: patches, and of an image its uint8 pixels."""
    frames = draw_frames(grid, spec, seed)
    pixels = frames[0] if grid.t == 1 else None
    return EncoderInput(grid, patch_values(frames, grid, spec, preprocessing), pixels)


def draw_frames(grid: Grid, spec: VisionSpec, seed: int) -> NDArray[np.uint8]:
    """uint8 [frames, H, W, 3]: one synthetic picture that moves from frame to frame; an image has one frame."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    height, width = spec.geometry.pixels(grid)
    ramp = np.linspace(0, 255, width)[None, :, None] * rng.random(3) + np.linspace(0, 90, height)[:, None, None]
    image = Image.fromarray(np.clip(ramp + rng.normal(0, 10, (height, width, 3)), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        x, y, r = rng.integers(width), rng.integers(height), rng.integers(4, max(5, min(width, height) // 3))
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        draw.ellipse((int(x - r), int(y - r), int(x + r), int(y + r)), fill=colour)
        draw.line((int(x), int(y), int(rng.integers(width)), int(rng.integers(height))), fill=colour, width=2)
    draw.text((4, 4), f"{seed} {height}x{width}", fill=(255, 255, 255))
    picture = np.asarray(image)
    frames = 1 if grid.t == 1 else spec.geometry.frames(grid)
    return np.stack([np.roll(picture, 5 * frame, axis=1) for frame in range(frames)])
