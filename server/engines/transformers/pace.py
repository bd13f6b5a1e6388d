"""How answers under way go on while a prompt is computed: measured seconds decide when the next step is due.

A prefill that takes no longer than a step is computed at once. In a longer one, a step waits for at most `SHARE` of its
own time of prefill, and for the layer that is being computed then, whose time the size of a piece limits to the same.
So a gap between two tokens is at most two steps. More steps would be taken by fewer rows than may soon be there.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.4
MIN_PIECE = 32  # tokens; smaller pieces read the weights again for little
FIRST_PIECE = 256  # tokens, until a prefill was measured
_WEIGHT = 0.2  # of a new measurement in the mean


class Pace:
    """Running means of what was measured; belongs to the engine's thread.

    Args:
        layers: layers of the model.
        clock: monotonic seconds.
    """

    def __init__(self, layers: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._layers = layers
        self._clock = clock
        self._step_s: float | None = None
        self._token_layer_s: float | None = None
        self._shortest_s: float | None = None
        self._step_ended = clock()

    @property
    def due(self) -> bool:
        """Whether the next step is, between two layers of a prefill."""
        return self._clock() - self._step_ended >= SHARE * (self._step_s or 0.0)

    @property
    def piece(self) -> int:
        """Most tokens of a prompt's next piece, while answers are under way."""
        if self._step_s is None or not self._token_layer_s:
            return FIRST_PIECE
        return max(MIN_PIECE, int(SHARE * self._step_s / self._token_layer_s))

    def is_long(self, tokens: int) -> bool:
        """Whether the prefill of so many tokens is expected to take longer than a step."""
        if self._step_s is None or self._token_layer_s is None or self._shortest_s is None:
            return True
        return max(self._shortest_s, tokens * self._layers * self._token_layer_s) > self._step_s

    def stepped(self, seconds: float | None) -> None:
        """A step has ended, after so many seconds; None if a prefill was going on, whose share of them is unknown."""
        self._step_ended = self._clock()
        if seconds is not None:
            self._step_s = _mean(self._step_s, seconds)

    def prefilled(self, tokens: int, seconds: float) -> None:
        """So many prompt tokens took so many seconds, without the steps between their layers."""
        self._shortest_s = seconds if self._shortest_s is None else min(seconds, self._shortest_s)
        self._token_layer_s = _mean(self._token_layer_s, seconds / (tokens * self._layers))


def _mean(before: float | None, value: float) -> float:
    return value if before is None else before + _WEIGHT * (value - before)
