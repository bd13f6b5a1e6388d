"""Waiting requests, one line per client; the clients take turns.

One client with a thousand requests delays another's first by one request, not by a thousand.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

from qwen3vl_edge.contract.errors import QueueFullError

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue with one line per client, served round-robin; thread-safe.

    Args:
        max_waiting: items of all clients together.
        max_per_client: items of one client.
    """

    def __init__(self, max_waiting: int, max_per_client: int | None = None) -> None:
        self._max_waiting = max_waiting
        self._max_per_client = max_per_client or max_waiting
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()  # in the order of their turns
        self._count = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return self._count

    def check_room(self, client: str, retry_after: int) -> None:
        """Raise if `put` would raise.

        Raises:
            QueueFullError: the queue is full, or full for this client.
        """
        with self._changed:
            self._check(client, retry_after)

    def put(self, client: str, item: T, retry_after: int) -> None:
        """Add an item to its client's line.

        Args:
            retry_after: seconds that the error tells the client to wait.

        Raises:
            QueueFullError: the queue is full, or full for this client.
        """
        with self._changed:
            self._check(client, retry_after)
            self._lines.setdefault(client, deque()).append(item)
            self._count += 1
            self._changed.notify()

    def take(self) -> T | None:
        """Remove and return the next item, None if the queue is empty; its client moves to the end of the order."""
        with self._changed:
            if not self._lines:
                return None
            client, line = self._lines.popitem(last=False)
            item = line.popleft()
            if line:
                self._lines[client] = line
            self._count -= 1
            return item

    def remove(self, client: str, item: T) -> bool:
        """Remove an item from its client's line; False if it is not in it."""
        with self._changed:
            line = self._lines.get(client)
            if line is None or item not in line:
                return False
            line.remove(item)
            if not line:
                del self._lines[client]
            self._count -= 1
            return True

    def wait(self, timeout: float) -> None:
        """Block until the queue has an item, or the timeout expires."""
        with self._changed:
            if not self._lines:
                self._changed.wait(timeout)

    def wake(self) -> None:
        """End a `wait`."""
        with self._changed:
            self._changed.notify_all()

    def drain(self) -> list[T]:
        """Remove and return all items."""
        with self._changed:
            items = [item for line in self._lines.values() for item in line]
            self._lines.clear()
            self._count = 0
            return items

    def _check(self, client: str, retry_after: int) -> None:
        if self._count >= self._max_waiting:
            raise QueueFullError(self._count, retry_after)
        own = len(self._lines.get(client, ()))
        if own >= self._max_per_client:
            raise QueueFullError(own, retry_after)
