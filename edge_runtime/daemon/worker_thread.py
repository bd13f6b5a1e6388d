"""A thread that does one piece of work after the other, and tells for how long it has been at the same one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class WorkerThread:
    """An executor of one thread.

    Attributes:
        name: what it does, for errors.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._waiting = 0  # or running
        self._moved = time.monotonic()

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Do this work after all that was submitted before."""
        with self._lock:
            if not self._waiting:
                self._moved = time.monotonic()
            self._waiting += 1
        future = self._pool.submit(self._run, work, arguments)
        future.add_done_callback(self._done)
        return future

    @property
    def stuck_s(self) -> float:
        """Seconds since work that waits, or runs, has last begun or ended; 0 without work."""
        with self._lock:
            return time.monotonic() - self._moved if self._waiting else 0.0

    def close(self) -> None:
        """Wait for the work that runs; what waits is cancelled."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, work: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        self._moved = time.monotonic()
        return work(*arguments)

    def _done(self, future: Future[Any]) -> None:
        with self._lock:
            self._waiting -= 1
            if not future.cancelled():
                self._moved = time.monotonic()
