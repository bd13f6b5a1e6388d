"""Pixels to check a graph with: pictures with edges, gradients, text and grain, in the HF processor's layout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid, PatchGeometry
from qwen3vl_edge.contract.bundle.manifest import Preprocessing, VisionSpec
from qwen3vl_edge.contract.bundle.patch_values import patch_values


def drawn_input(grid: Grid, spec: VisionSpec, preprocessing: Preprocessing, seed: int) -> EncoderInput:
    """A synthetic picture or clip as both kinds of graph take it: patches, and of an image its uint8 pixels."""
    frames = draw_frames(grid, spec, seed)
    pixels = frames[0] if grid.t == 1 else None
    return EncoderInput(grid, patch_values(frames, grid, spec, preprocessing), pixels)


def picture_input(
    grid: Grid, pixels: NDArray[np.uint8], spec: VisionSpec, preprocessing: Preprocessing
) -> EncoderInput:
    """A given picture, uint8 [H, W, 3] RGB of the grid's size, as both kinds of graph take it."""
    return EncoderInput(grid, patch_values(pixels[None], grid, spec, preprocessing), pixels)


def fit_picture(
    picture: NDArray[np.uint8], grids: Sequence[Grid], geometry: PatchGeometry
) -> tuple[Grid, NDArray[np.uint8]]:
    """The grid of nearest aspect ratio, and the picture resized to it (bicubic)."""
    from PIL import Image

    def unlike(grid: Grid) -> float:
        return abs(float(np.log(grid.h / grid.w * picture.shape[1] / picture.shape[0])))

    grid = min(grids, key=unlike)
    height, width = geometry.pixels(grid)
    resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
    return grid, np.asarray(resized)


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
