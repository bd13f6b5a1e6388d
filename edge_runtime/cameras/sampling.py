"""Which frames of a stream are taken, by their timestamps alone."""

from __future__ import annotations

JUMP_SECONDS = 5.0


class Sampler:
    """At most one frame per 1/fps seconds: the first that is nearest to its turn.

    Frames that come twice or late are passed over; where frames are missing so are their turns, and nothing is made
    up for them. A clock that jumps back begins anew.
    """

    def __init__(self, fps: float) -> None:
        self._interval = 1 / fps
        self._origin: float | None = None
        self._last = 0.0
        self._turn = -1

    def take(self, seconds: float) -> bool:
        """Whether the frame at `seconds` is to be used."""
        if self._origin is None or seconds < self._last - JUMP_SECONDS:
            self._origin, self._last, self._turn = seconds, seconds, 0
            return True
        if seconds <= self._last:
            return False
        # Half a frame early is nearer to the turn than the next frame would be; never more than a quarter of a turn.
        early = min((seconds - self._last) / 2, self._interval / 4)
        self._last = seconds
        turn = int((seconds - self._origin + early) / self._interval + 1e-9)
        if turn <= self._turn:
            return False
        self._turn = turn
        return True
