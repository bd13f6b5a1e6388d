"""The vision encoder's input, used by the export's check, the device, calibration and parity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid


@dataclass(frozen=True)
class EncoderInput:
    """One image or clip for the encoder.

    Attributes:
        pixel_values: float32 [t·h·w, channels·temporal·patch²] in the HF processor's layout.
        pixels: uint8 [H, W, 3] RGB for a uint8 graph, which takes one image at a time, else None.
    """

    grid: Grid
    pixel_values: NDArray[np.float32]
    pixels: NDArray[np.uint8] | None = None

    @property
    def values(self) -> NDArray[Any]:
        """The array that the encoder receives: the pixels if there are any, else the patches."""
        return self.pixel_values if self.pixels is None else self.pixels
