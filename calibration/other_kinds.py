"""Pictures unlike those of the data, by recipe: grain, stripes, checks, clouds and ramps, faint and strong.

Ranges that seven photographs need do not hold every other photograph: an eighth, of a brick wall, lost one percent in
one DeepStack level. Held-out pictures of the same folder do not show that; even textures do, of a contrast and a scale
that a folder of one kind of picture lacks. Seeded, so that the same bundle and data give the same set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import Preprocessing, VisionSpec
from qwen3vl_edge.export.onnx.check_pixels import picture_input

RECIPES = 1  # the version of the recipes: a set that was measured with others is made again
_FAINT, _STRONG = 12.0, 100.0  # contrast: levels above and below the middle
_Values = NDArray[np.float64]  # [H, W] or [H, W, 3], about -1 to 1


def _grain(height: int, width: int) -> _Values:
    return np.random.default_rng(1).uniform(-1, 1, (height, width))


def _colour_grain(height: int, width: int) -> _Values:
    return np.random.default_rng(2).uniform(-1, 1, (height, width, 3))


def _clouds(height: int, width: int) -> _Values:
    """Noise whose amplitude falls with its frequency, as of natural pictures (Field, 1987)."""
    spectrum = np.fft.fft2(np.random.default_rng(3).standard_normal((height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = np.inf
    values = np.fft.ifft2(spectrum / frequency).real
    return np.asarray(values / (2 * values.std()))


def _stripes(height: int, width: int) -> _Values:
    """Upright and as wide as half a patch of 16 pixels."""
    return np.broadcast_to(np.where(np.arange(width) // 8 % 2, 1.0, -1.0), (height, width))


def _lines(height: int, width: int) -> _Values:
    """Level, thin and far apart, as of brickwork and print."""
    return np.broadcast_to(np.where(np.arange(height)[:, None] % 12 < 2, 1.0, -0.2), (height, width))


def _checks(height: int, width: int) -> _Values:
    rows, columns = np.mgrid[:height, :width]
    return np.where((rows // 6 + columns // 6) % 2, 1.0, -1.0)


def _ramp(height: int, width: int) -> _Values:
    return np.linspace(-1, 1, height)[:, None] * 0.5 + np.linspace(-1, 1, width)[None] * 0.5


TEXTURES: tuple[tuple[Callable[[int, int], _Values], float], ...] = (
    (_grain, _FAINT),
    (_clouds, _FAINT),
    (_stripes, _STRONG),
    (_lines, _FAINT),
    (_checks, _FAINT),
    (_colour_grain, _STRONG),
    (_checks, _STRONG),
    (_ramp, _STRONG),
)


def draw_texture(index: int, height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: a texture of `TEXTURES`."""
    draw, contrast = TEXTURES[index]
    values = draw(height, width)
    values = values if values.ndim == 3 else values[..., None].repeat(3, axis=2)
    return np.clip(np.rint(128 + contrast * values), 0, 255).astype(np.uint8)


def texture_inputs(grids: Sequence[Grid], spec: VisionSpec, preprocessing: Preprocessing) -> list[EncoderInput]:
    """Each texture, at the grids in turn.

    Args:
        grids: of images.
    """
    inputs = []
    for index in range(len(TEXTURES)):
        grid = grids[index % len(grids)]
        inputs.append(picture_input(grid, draw_texture(index, *spec.geometry.pixels(grid)), spec, preprocessing))
    return inputs
