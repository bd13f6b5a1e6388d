"""Histograms of an activation's magnitudes, one per channel, for calibration.

Bins are logarithmic and the same for all tensors, so that batches add up without rescaling, and scaling a
channel (SmoothQuant) shifts its counts and needs no second pass over the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SHIFT = 20  # keeps the exponent and 3 bits of the mantissa of a float32
_PER_OCTAVE = 1 << (23 - _SHIFT)
_LOWEST_EXPONENT, _HIGHEST_EXPONENT = -14, 16  # 6e-5 to 65536; smaller counts as the lowest bin
BINS = (_HIGHEST_EXPONENT - _LOWEST_EXPONENT) * _PER_OCTAVE
_FIRST = (127 + _LOWEST_EXPONENT) * _PER_OCTAVE


def _edges() -> NDArray[np.float32]:
    """[BINS + 1] magnitudes; the first is 0."""
    bits = (np.arange(_FIRST, _FIRST + BINS + 1, dtype=np.uint32)) << _SHIFT
    edges = bits.view(np.float32).copy()
    edges[0] = 0.0
    return edges


EDGES = _edges()


@dataclass
class ChannelHistogram:
    """Magnitudes of one activation tensor.

    Attributes:
        counts: uint32 [channels, BINS].
        largest: float32 [channels], exact.
        rows: rows counted.
    """

    counts: NDArray[np.uint32]
    largest: NDArray[np.float32]
    rows: int = 0

    @classmethod
    def empty(cls, channels: int) -> ChannelHistogram:
        return cls(np.zeros((channels, BINS), np.uint32), np.zeros(channels, np.float32))

    def add(self, values: NDArray[np.float32], block: int = 256) -> None:
        """Count the magnitudes of [rows, channels], a block of rows at a time."""
        channels = self.counts.shape[0]
        offsets = (np.arange(channels, dtype=np.int32) * BINS)[None, :]
        for start in range(0, len(values), block):
            magnitude = np.abs(values[start : start + block]).astype(np.float32)  # of an fp16 set: float16
            np.maximum(self.largest, magnitude.max(axis=0), out=self.largest)
            index = (np.ascontiguousarray(magnitude).view(np.uint32) >> _SHIFT).view(np.int32)
            index = np.clip(index - _FIRST, 0, BINS - 1) + offsets
            counted = np.bincount(index.reshape(-1), minlength=channels * BINS)
            self.counts += counted.astype(np.uint32).reshape(channels, BINS)
        self.rows += len(values)

    def rescaled(self, factor: NDArray[np.float32], bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The tensor's histogram over evenly spaced magnitudes after channel c is multiplied by factor[c].

        Returns:
            counts float64 [bins] and edges float64 [bins + 1], from 0 to the largest rescaled magnitude.
            Inside a logarithmic bin values are taken as evenly spread.
        """
        top = float((self.largest * factor).max(initial=0.0)) or 1.0
        edges = np.linspace(0.0, top, bins + 1)
        below = np.zeros(bins + 1)
        occupied = EDGES.astype(np.float64)
        for scale in np.unique(factor):
            same = self.counts[factor == scale].sum(axis=0, dtype=np.float64)
            cumulative = np.concatenate([[0.0], np.cumsum(same)])
            below += np.interp(edges, occupied * float(scale), cumulative)
        below[-1] = float(self.counts.sum(dtype=np.float64))  # the last log bin reaches past the largest value
        return np.diff(below), edges
