"""Rate limits: a token bucket per sender."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

MAX_SENDERS = 10_000  # whose buckets are remembered, some 2 MB; the longest silent is forgotten, and starts afresh


class RateLimit:
    """Used from one thread.

    Args:
        per_minute: turns that come back per minute; 0 for no limit.
        burst: turns that a silent sender has at once.
        clock: seconds, never going back.
    """

    def __init__(self, per_minute: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # turns, and when there were so many

    def take(self, sender: str, per_minute: float | None = None) -> float:
        """0 and one turn less, or the seconds until the sender has one.

        Args:
            per_minute: this sender's own, in place of all others'.
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


def sender_of(address: str) -> str:
    """The address a limit is for: of IPv6 the first 64 bits, since one machine has all the others."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # a proxy may say anything
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)
