"""Frames of a clip at another size, equal to the bit to torchvision's bicubic resize of uint8 tensors with antialias.

torchvision's `resize` (`transforms/functional.py`, which qwen-vl-utils calls) turns bytes into float32, has torch
resize columns and then rows with weights in float32 (`aten/src/ATen/native/cpu/UpSampleKernel.cpp`,
`_compute_indices_min_size_weights_aa`, `interpolate_aa_single_dim`), and rounds to bytes. Most bytes do not depend on
the order of its additions: they come from matrix products. Those so near to half a step that they may are computed
again as torch's build for x86-64 with FMA does: the first product rounded, then groups of four products rounded before
they are added, and the rest multiplied and added in one rounding. Its builds without FMA differ from it themselves, by
one step in about 1 of 50,000 bytes. tests/edge_runtime/lean/test_clip_resize.py compares both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Places = NDArray[np.intp]
_GROUP = 4  # products that the kernel's compiler rounds together
_SUPPORT = 2.0  # of the cubic filter, in pixels of the coarser grid
_CUBIC = np.float32(-0.5)
_BLOCK = 64  # output pixels of one product, whose inputs overlap
_POINTS_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class Taps:
    """The weights of one side.

    Attributes:
        first: [out], the first input pixel of each output pixel.
        count: [out], of its input pixels.
        weights: [out, most], float32; zero from `count` on.
        blocks: ranges of input pixels, and the weights from them to the next output pixels, float32 [inputs, outputs].
    """

    first: Places
    count: Places
    weights: Floats
    blocks: tuple[tuple[int, int, Floats], ...]


def resize_frames(frames: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [F, H, W, C] to uint8 [F, C, height, width]."""
    planes = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
    if planes.shape[2:] == (height, width):
        return planes
    rows, columns = taps(planes.shape[2], height), taps(planes.shape[3], width)
    resized = np.empty((*planes.shape[:2], height, width), np.uint8)
    for plane, out in zip(planes.reshape(-1, *planes.shape[2:]), resized.reshape(-1, height, width), strict=True):
        values = _near(plane, rows, columns)
        out[...] = np.rint(values)
        y, x = np.nonzero(np.abs(values - np.floor(values) - np.float32(0.5)) < _doubt(rows, columns))
        for start in range(0, len(y), _POINTS_AT_ONCE):
            points = slice(start, start + _POINTS_AT_ONCE)
            exact = _exact(plane, rows, columns, y[points], x[points])
            out[y[points], x[points]] = np.rint(exact.clip(0, 255))
    return resized


def _near(plane: NDArray[np.uint8], rows: Taps, columns: Taps) -> Floats:
    """Every output pixel, 0 to 255, but for the order of additions."""
    source = plane.astype(np.float32)
    between = np.concatenate([source[:, low:high] @ matrix for low, high, matrix in columns.blocks], 1)
    values = np.concatenate([matrix.T @ between[low:high] for low, high, matrix in rows.blocks], 0)
    return np.asarray(values.clip(0, 255), dtype=np.float32)


def _doubt(rows: Taps, columns: Taps) -> float:
    """The most by which two orders of additions may differ.

    A sum of n products differs from the true one by n · 2^-24 · sum |weight · value| at most, and both orders do so.
    The filter's weights add up to 1.25 without their signs, once for columns and once for rows, and values are at
    most 255.
    """
    products = rows.weights.shape[1] + columns.weights.shape[1]
    return float(2 * 2.0**-24 * 1.25**2 * 255 * products)


def _exact(plane: NDArray[np.uint8], rows: Taps, columns: Taps, y: Places, x: Places) -> Floats:
    """Some output pixels as torch computes them, float32 [points]."""
    from_rows = np.minimum(rows.first[y, None] + np.arange(rows.weights.shape[1]), plane.shape[0] - 1)
    from_columns = np.minimum(columns.first[x, None] + np.arange(columns.weights.shape[1]), plane.shape[1] - 1)
    source = plane[from_rows[:, :, None], from_columns[:, None, :]].astype(np.float32)
    between = _added(source, columns.weights[x, None], columns.count[x, None])
    return _added(between, rows.weights[y], rows.count[y])


def _added(values: Floats, weights: Floats, count: Places) -> Floats:
    """Sum of products over the last axis, of which `count` are there."""
    grouped = 1 + (count - 1) // _GROUP * _GROUP
    total = values[..., 0] * weights[..., 0]
    for place in range(1, values.shape[-1]):
        value, weight = values[..., place], weights[..., place]
        after = np.where(place < grouped, value * weight + total, _fused(value, weight, total))
        total = np.where(place < count, after, total)
    return total


def _fused(factor: Floats | np.float32, other: Floats, added: Floats | np.float32) -> Floats:
    """factor · other + added in one rounding: the product of two float32 is exact in float64."""
    return np.asarray(factor.astype(np.float64) * other + added, dtype=np.float32)


@lru_cache(maxsize=8)  # up to 12 MB each: those of one picture, or of a clip
def taps(size: int, resized: int) -> Taps:
    """Taps of a side of `size` pixels that gets `resized`."""
    scale = np.float32(size) / np.float32(resized)
    wide = scale >= 1
    support = np.float32(_SUPPORT * scale) if wide else np.float32(_SUPPORT)
    inverse = float(np.float32(1.0 / float(scale))) if wide else 1.0
    centre = (float(scale) * (np.arange(resized) + 0.5)).astype(np.float32)
    first = np.maximum(((centre - support).astype(np.float64) + 0.5).astype(np.intp), 0)
    count = np.minimum(((centre + support).astype(np.float64) + 0.5).astype(np.intp), size) - first
    number = np.arange(count.max())
    away = ((number + first[:, None]).astype(np.float32) - centre[:, None]).astype(np.float64)
    distance = np.abs(((away + 0.5) * inverse).astype(np.float32))
    weights = np.where(number < count[:, None], _cubic(distance), np.float32(0))
    total = np.zeros(resized, np.float32)
    for column in weights.T:
        total += column
    weights /= total[:, None]
    return Taps(first, count, weights, tuple(_blocks(first, count, weights)))


def _blocks(first: Places, count: Places, weights: Floats) -> Iterator[tuple[int, int, Floats]]:
    for start in range(0, len(first), _BLOCK):
        outputs = slice(start, start + _BLOCK)
        low, high = int(first[outputs].min()), int((first + count)[outputs].max())
        matrix = np.zeros((high - low, len(first[outputs])), np.float32)
        for column, place in enumerate(range(start, start + matrix.shape[1])):
            own, number = first[place] - low, count[place]
            matrix[own : own + number, column] = weights[place, :number]
        yield low, high, matrix


def _cubic(distance: Floats) -> Floats:
    """Keys' filter with a = -0.5, as Pillow has it; `cubic_convolution1` and `cubic_convolution2` of torch."""
    one = np.float32(1)
    near = _fused(_fused(_CUBIC + 2 * one, distance, -(_CUBIC + 3 * one)) * distance, distance, one)
    far = _fused(_fused(_fused(_CUBIC, distance, -5 * _CUBIC), distance, 8 * _CUBIC), distance, -4 * _CUBIC)
    return np.where(distance < 1, near, np.where(distance < 2, far, np.float32(0)))
