"""Which failures of a request are retried, and how long to wait between tries."""

from __future__ import annotations

import asyncio
import random
import time

from qwen3vl_edge.contract.errors import ContractError

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.25, 8.0
# The server is loading, its queue is full, or a proxy cannot reach it for a moment.
RETRYABLE_STATUSES = frozenset({429, 502, 503, 504})


class RetryableError(Exception):
    """A try failed in a way in which another try may not fail.

    Attributes:
        cause: what is raised once no time is left for another try.
        at_least: seconds to wait before it, from the server's `Retry-After`.
    """

    def __init__(self, cause: ContractError, at_least: float = 0.0) -> None:
        super().__init__(str(cause))
        self.cause, self.at_least = cause, at_least


class Backoff:
    """Exponential waits with full jitter between tries (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015).

    Args:
        ends: the deadline of all tries, on `time.monotonic`'s clock.
    """

    def __init__(self, ends: float) -> None:
        self._ends, self._next = ends, FIRST_WAIT_SECONDS

    async def pause(self, error: RetryableError) -> None:
        """Wait before the next try.

        Raises:
            ContractError: the cause of `error`, where the deadline would pass meanwhile.
        """
        seconds = max(random.uniform(0, self._next), error.at_least)
        if time.monotonic() + seconds >= self._ends:
            raise error.cause from None
        await asyncio.sleep(seconds)
        self._next = min(self._next * 2, LONGEST_WAIT_SECONDS)
