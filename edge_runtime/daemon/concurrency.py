"""Limits the requests in flight, and with them the memory they hold."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from qwen3vl_edge.contract.errors import QueueFullError

RETRY_AFTER_SECONDS = 2


class ConcurrencyLimit:
    """A counter with a limit. A request holds its slot until its answer has been sent.

    Attributes:
        limit: the largest number of slots.
        in_flight: slots in use.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raises: QueueFullError: no slot is free now."""
        if self.in_flight >= self.limit:
            raise QueueFullError(self.in_flight, RETRY_AFTER_SECONDS)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one slot while the block runs.

        Raises:
            QueueFullError: all slots are in use; has the seconds until a retry.
        """
        with self._lock:
            self.check()
            self.in_flight += 1
        try:
            yield
        finally:
            with self._lock:
                self.in_flight -= 1
