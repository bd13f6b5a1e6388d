"""Rate limits: a token bucket per sender."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MAX_SENDERS = 10_000  # buckets in memory, about 2 MB; the least recently used is evicted, and starts full again


class RateLimit:
    """Token buckets by sender. Used from one thread.

    Args:
        per_minute: requests refilled per minute; 0 for no limit.
        burst: capacity of a bucket in requests.
        clock: monotonic seconds.
    """

    def __init__(self, per_minute: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, at a time

    def take(self, sender: str, per_minute: float | None = None) -> float:
        """Take one request from the sender's bucket: 0 if there was one, else the seconds until there is.

        Args:
            per_minute: overrides the limit for this sender.
        """
        rate = (self._per_minute if per_minute is None else per_minute) / 60
        if rate <= 0:
            return 0.0
        now = self._clock()
        turns, since = self._buckets.get(sender, (float(self._burst), now))
        turns = min(self._burst, turns + (now - since) * rate)
        allowed = turns >= 1
        self._buckets[sender] = (turns - 1 if allowed else turns, now)
        self._buckets.move_to_end(sender)
        while len(self._buckets) > MAX_SENDERS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - turns) / rate

    def __len__(self) -> int:
        return len(self._buckets)
