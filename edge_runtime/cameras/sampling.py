"""A frame of a stream, and which frames are sampled, by their timestamps alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

JUMP_SECONDS = 5.0
Wanted = Callable[[float], bool]  # whether the frame of that timestamp is to be decoded


@dataclass(frozen=True)
class Frame:
    """A sampled frame: seconds on this machine's monotonic clock, and uint8 [H, W, 3]."""

    seconds: float
    rgb: NDArray[np.uint8]


class Sampler:
    """Samples at most one frame per interval of 1/fps seconds: the first that is nearest to the interval's start.

    Repeated and late frames are skipped; an interval without frames stays empty. A clock that jumps back resets it.
    """

    def __init__(self, fps: float) -> None:
        self._interval = 1 / fps
        self._origin: float | None = None
        self._last = 0.0
        self._index = -1

    def take(self, seconds: float) -> bool:
        """Whether the frame at `seconds` is sampled."""
        if self._origin is None or seconds < self._last - JUMP_SECONDS:
            self._origin, self._last, self._index = seconds, seconds, 0
            return True
        if seconds <= self._last:
            return False
        # Half a frame early is nearer than the next frame would be; at most a quarter of an interval.
        early = min((seconds - self._last) / 2, self._interval / 4)
        self._last = seconds
        index = int((seconds - self._origin + early) / self._interval + 1e-9)
        if index <= self._index:
            return False
        self._index = index
        return True
