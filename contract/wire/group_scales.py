"""The scale of each group of columns with the least squared error, for packings of few codes.

The largest value of a group over the largest code is not it: a smaller scale clips that value and serves all others
better, and where the largest value is negative, the lowest code has room for it. The sender chooses, so any receiver
reads what it chose. Clipping for the least squared error: Banner et al. (arXiv 1810.05723); trying a few scales and
keeping the best, as llama.cpp does (`make_qx_quants` in ggml-quants.c).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scales = NDArray[np.floating[Any]]
_VALUES = 96 * 2**10  # at a time: their float32 copies fit in the CPU's cache


def least_error_scales(
    groups: NDArray[Any], codes: tuple[float, float], shrinks: Sequence[float], dtype: str
) -> Scales:
    """The scales to send.

    Args:
        groups: float16 or float32 [n, columns of a group].
        codes: the lowest and the largest code; values beyond them are clipped.
        shrinks: scales to try, as parts of the largest magnitude over the largest code: 1, then ever less.
        dtype: numpy's of the scales, which are compared as rounded to it.

    Returns:
        [n]; the larger of two scales with the same error, and infinity where `dtype` holds none of them.
    """
    scales = np.empty(len(groups), dtype)
    at_once = max(1, _VALUES // max(1, groups.shape[1]))
    for start in range(0, len(groups), at_once):
        part = slice(start, start + at_once)
        scales[part] = _search(groups[part], codes, shrinks, dtype)
    return scales


def _search(groups: NDArray[Any], codes: tuple[float, float], shrinks: Sequence[float], dtype: str) -> Scales:
    lowest, largest = codes
    values = groups.T.astype(np.float32, order="C")  # [columns, n]: operations on long rows, not on groups
    magnitudes = np.maximum(values.max(axis=0, initial=0), -values.min(axis=0, initial=0))
    steps, errors = np.empty_like(values), np.empty_like(values)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        first: Scales = (magnitudes / np.float32(largest)).astype(dtype)
        best = first
        least = np.full(len(first), np.inf, np.float32)
        for shrink in shrinks:
            scales = (magnitudes * np.float32(shrink) / np.float32(largest)).astype(dtype)
            scales = np.where(scales == 0, first, scales)  # float16 holds no smaller one
            exact = scales.astype(np.float32)
            np.multiply(values, 1 / exact, out=steps)
            np.rint(steps, out=errors)
            np.clip(errors, lowest, largest, out=errors)
            errors -= steps
            # Relative to the largest magnitude, so that squares stay in float32's range.
            sums = np.einsum("ij,ij->j", errors, errors) * np.square(exact / magnitudes)
            better = sums < least
            best, least = np.where(better, scales, best), np.where(better, sums, least)
    return best
