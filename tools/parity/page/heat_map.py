"""The error of each token, drawn over the picture as the encoder got it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.manifest import Preprocessing, VisionSpec
from qwen3vl_edge.tools.parity.pixels import to_rgb
from qwen3vl_edge.tools.parity.samples import Case

SIDE = 420  # pixels of the longer side, enough for half a column
# From dark blue through red to yellow: hue and lightness both rise, so that it is legible in grey too.
COLOURS = np.array(
    [(13, 16, 60), (72, 18, 107), (140, 41, 99), (206, 66, 67), (245, 125, 36), (250, 200, 60), (252, 245, 170)],
    dtype=np.float64,
)


@dataclass(frozen=True)
class HeatMap:
    """Two pictures of the same size, as data URIs.

    Attributes:
        size: width and height in pixels.
        frame: which temporal patch is shown: the one with the worst token.
        row, column: of the worst token in the token grid.
        worst: its error.
    """

    picture: str
    overlay: str
    size: tuple[int, int]
    frame: int
    row: int
    column: int
    worst: float


def heat_map(case: Case, token_error: NDArray[np.float64], vision: VisionSpec, preprocessing: Preprocessing) -> HeatMap:
    """Draw the token errors [n], n = t·h·w / merge², over the case's picture.

    The scale runs from 0 to the worst token of this picture; a token that is not a number is drawn as the worst.
    """
    grid, merge = case.grid, vision.merge_size
    errors = token_error.reshape(grid.t, grid.h // merge, grid.w // merge)
    errors = np.where(np.isfinite(errors), errors, np.inf)
    frame, row, column = (int(index) for index in np.unravel_index(int(errors.argmax()), errors.shape))
    rgb = to_rgb(case.input.pixel_values, grid, vision, preprocessing)[frame * vision.temporal_patch_size]
    worst = float(errors.max())
    top = worst if np.isfinite(worst) and worst > 0 else 1.0
    share = np.minimum(errors[frame], top) / top
    return HeatMap(_data_uri(rgb), _data_uri(_over(rgb, share)), _size(rgb), frame, row, column, worst)


def gradient() -> str:
    """The scale as a CSS gradient."""
    stops = ", ".join(f"rgb({int(r)}, {int(g)}, {int(b)})" for r, g, b in COLOURS)
    return f"linear-gradient(90deg, {stops})"


def _over(rgb: NDArray[np.uint8], share: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The colours of `share` [rows, columns], 0 to 1, darkened where the picture is dark."""
    stops = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(share, stops, COLOURS[:, channel]) for channel in range(3)], axis=-1)
    blocks = rgb.shape[0] // share.shape[0], rgb.shape[1] // share.shape[1]
    colours = colours.repeat(blocks[0], axis=0).repeat(blocks[1], axis=1)
    grey = (rgb.astype(np.float64) @ np.array([0.299, 0.587, 0.114]))[..., None]
    return np.asarray(np.clip(colours * (0.55 + 0.45 * grey / 255), 0, 255), dtype=np.uint8)


def _size(rgb: NDArray[np.uint8]) -> tuple[int, int]:
    """Width and height at which a picture is shown."""
    height, width = rgb.shape[:2]
    factor = SIDE / max(height, width)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _data_uri(rgb: NDArray[np.uint8]) -> str:
    from PIL import Image

    image = Image.fromarray(rgb).resize(_size(rgb), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
