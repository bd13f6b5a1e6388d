"""One way to encode a picture, as the encoder bench runs and times it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Candidate:
    """How to run it, and how long a run keeps the GPU busy by the GPU's own clock, where it can tell.

    Attributes:
        run: from pixel values in host memory to embeddings in host memory.
        device_seconds: runs once more and returns the GPU's seconds; None on a CPU.
    """

    run: Callable[[Pixels], object]
    device_seconds: Callable[[Pixels], float] | None = None
