"""The reference of every comparison, asked once for each input: the sets of a bundle share their pictures."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.edge_runtime.encoder.protocol import Embeddings, EncoderBackend, ServedGrids

KEPT_BYTES = 2**30


class KeptReference:
    """A backend that keeps its outputs in memory, up to a number of bytes.

    What is over the limit is computed again. Nothing kept makes room: each set asks for the same inputs in the same
    order, so whatever was evicted would be the next that is asked for.
    """

    def __init__(self, inner: EncoderBackend, kept_bytes: int = KEPT_BYTES) -> None:
        self._inner, self._left = inner, kept_bytes
        self._kept: dict[tuple[Grid, bytes], Embeddings] = {}
        self.name, self.precision = inner.name, inner.precision

    @property
    def serves(self) -> ServedGrids:
        return self._inner.serves

    def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> Embeddings:
        """As `EncoderBackend.run`."""
        key = (grid, hashlib.blake2b(pixel_values.tobytes()).digest())
        if key in self._kept:
            return self._kept[key]
        found = self._inner.run(grid, pixel_values)
        size = sum(array.nbytes for array in (found.embeds, *found.deepstack))
        if size <= self._left:
            self._left -= size
            self._kept[key] = found
        return found

    def close(self) -> None:
        self._kept.clear()
        self._inner.close()
