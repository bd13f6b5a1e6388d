"""One frame of a source, and who decides which are taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frame:
    """A sampled frame: seconds on this machine's monotonic clock, and uint8 [H, W, 3]."""

    seconds: float
    rgb: NDArray[np.uint8]


Wanted = Callable[[float], bool]
