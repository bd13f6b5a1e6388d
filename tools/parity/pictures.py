"""Pictures to compare encoders on: a folder's, or synthetic ones with edges, gradients, text and noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import open_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def pictures_of(folder: Path | None) -> dict[str, Any]:
    """PIL pictures by name.

    Raises:
        InputError: the folder is missing, or holds no picture, or one is corrupt.
    """
    if folder is None:
        return {f"drawn-{seed}": draw_picture(seed) for seed in range(3)}
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}", field="--images")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"no pictures in {folder}", field="--images", expected=", ".join(SUFFIXES))
    return {file.name: open_image(file) for file in files}


def draw_picture(seed: int, width: int = 320, height: int = 240) -> Any:
    """A picture with a gradient, shapes, text and grain, the same for the same seed."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, width, dtype=np.float32)[None, :, None] * rng.random(3, dtype=np.float32)
    grain = rng.normal(0, 8, (height, width, 3)).astype(np.float32)
    image = Image.fromarray(np.clip(ramp + 40 + grain, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, r = int(rng.integers(width)), int(rng.integers(height)), int(rng.integers(8, 60))
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        draw.rectangle((y - r, x - r, y, x), outline=colour, width=3)
    draw.text((10, 10), f"parity {seed}", fill="white")
    return image
