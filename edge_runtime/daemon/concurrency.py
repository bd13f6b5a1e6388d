"""How many requests may be under way: what is held in memory is bounded, and the next one is told when to return."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from qwen3vl_edge.contract.errors import QueueFullError

RETRY_AFTER_SECONDS = 2


class ConcurrencyLimit:
    """A counter with a limit. A request keeps its place until its answer has been sent.

    Attributes:
        limit: the most that may be taken. taken: now.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self._lock = threading.Lock()

    @contextmanager
    def place(self) -> Iterator[None]:
        """One place, until the block is left.

        Raises:
            QueueFullError: all are taken.
        """
        with self._lock:
            if self.taken >= self.limit:
                raise QueueFullError(self.taken, RETRY_AFTER_SECONDS)
            self.taken += 1
        try:
            yield
        finally:
            with self._lock:
                self.taken -= 1
