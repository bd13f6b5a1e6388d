"""Bytes resized as transformers' processors resize them, equal to the bit, with numpy alone.

They call torchvision's `resize` (`transforms/v2/functional`), and that torch's `interpolate` with antialias on bytes:
columns first, then rows, bicubic weights and their sums as whole numbers, rounded to bytes after each pass
(`aten/src/ATen/native/cpu/UpSampleKernel.cpp`: `_compute_index_ranges_int16_weights`,
`basic_loop_aa_horizontal<uint8_t>`). Whole numbers have the same sums in any order, so matrix products of floats that
hold them exactly are the same to the bit on every machine. tests/edge_runtime/lean/test_byte_resize.py compares both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SUPPORT = 2.0  # of the cubic filter, in pixels of the coarser grid
_CUBIC = -0.5
_MOST_WEIGHT = 1 << 15
_MOST_PRECISION = 22
_BLOCK = 32  # output pixels of one product, whose inputs overlap
_MIDDLE = 128  # subtracted from bytes, so that sums stay small
_EXACT_IN_FLOAT32 = 1 << 24


@dataclass(frozen=True)
class Taps:
    """The weights of one side.

    Attributes:
        shift: bits of the sums behind the point.
        offset: float64 [out], what is added to a sum of bytes less 128: their share, and a half.
        blocks: ranges of output and of input pixels, and the weights between them, [inputs, outputs]: float32 where
            it holds all sums, else float64.
    """

    shift: int
    offset: NDArray[np.float64]
    blocks: tuple[tuple[slice, slice, NDArray[Any]], ...]


def resize_bytes(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [H, W, channels] to uint8 [height, width, channels]."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    if planes.shape[2] != width:
        taps = weights(planes.shape[2], width)
        resized = np.empty((*planes.shape[:2], width), np.uint8)
        for out, ins, block in taps.blocks:
            resized[..., out] = _bytes(_centred(planes[..., ins], block) @ block, taps.offset[out], taps.shift)
        planes = resized
    if planes.shape[1] != height:
        taps = weights(planes.shape[1], height)
        resized = np.empty((planes.shape[0], height, width), np.uint8)
        for out, ins, block in taps.blocks:
            sums = block.T @ _centred(planes[:, ins], block)
            resized[:, out] = _bytes(sums, taps.offset[out][:, None], taps.shift)
        planes = resized
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def _centred(planes: NDArray[np.uint8], block: NDArray[Any]) -> NDArray[Any]:
    """Of one block at a time, so that no picture is a multiple of itself in memory."""
    values = planes.astype(block.dtype)
    values -= _MIDDLE
    return values


def _bytes(sums: NDArray[Any], offset: NDArray[np.float64], shift: int) -> NDArray[np.uint8]:
    """Sums with their offset, shifted and cut to bytes.

    In float32, offset and sum may exceed what it holds exactly, so they are added as whole numbers.
    """
    whole: Any = sums.astype(np.int64 if sums.dtype == np.float64 else np.int32)
    whole += offset.astype(whole.dtype)
    whole >>= shift
    clipped: NDArray[np.uint8] = np.clip(whole, 0, 255, out=whole).astype(np.uint8)
    return clipped


@lru_cache(maxsize=8)  # up to 12 MB each: those of one picture, or of a clip
def weights(size: int, out: int) -> Taps:
    """The weights from `size` pixels to `out`."""
    scale = size / out
    support = _SUPPORT * max(scale, 1.0)
    centre = scale * (np.arange(out) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), size) - first
    taps = np.arange(math.ceil(support) * 2 + 1)
    away = np.abs((taps + first[:, None] - centre[:, None] + 0.5) * (1 / scale if scale >= 1 else 1.0))
    near = ((_CUBIC + 2) * away - (_CUBIC + 3)) * away * away + 1
    far = (((away - 5) * away + 8) * away - 4) * _CUBIC
    values = np.where(away < 1, near, np.where(away < 2, far, 0.0))
    values[taps >= count[:, None]] = 0.0
    values /= np.add.accumulate(values, axis=1)[:, -1:]  # in their order, as there
    shift = 0
    while shift < _MOST_PRECISION and int(0.5 + values.max() * (1 << (shift + 1))) < _MOST_WEIGHT:
        shift += 1
    whole = np.trunc(np.where(values < 0, -0.5, 0.5) + values * (1 << shift))
    kind = np.float32 if np.abs(whole).sum(1).max() * _MIDDLE < _EXACT_IN_FLOAT32 else np.float64
    blocks = []
    for start in range(0, out, _BLOCK):
        end = min(start + _BLOCK, out)
        low, high = int(first[start]), int((first + count)[start:end].max())
        block = np.zeros((high - low, end - start), kind)
        for column in range(start, end):
            begin = int(first[column]) - low
            block[begin : begin + int(count[column]), column - start] = whole[column, : int(count[column])]
        blocks.append((slice(start, end), slice(low, high), block))
    return Taps(shift, whole.sum(1) * _MIDDLE + (1 << shift >> 1), tuple(blocks))
