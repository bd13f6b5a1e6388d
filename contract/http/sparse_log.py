"""Warnings that clients can cause, as often as they like: few lines in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)
LOG_SECONDS = 10.0


class SparseLog:
    """Warnings that clients can cause: one line of a kind in `every_s` seconds, with the number of those before it."""

    def __init__(self, every_s: float = LOG_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._kinds: dict[str, tuple[float, int]] = {}  # when it was last logged, and how often it came since

    def note(self, kind: str, text: str) -> None:
        """Log it, or count it if one of this kind was logged shortly before."""
        now = self._clock()
        last, since = self._kinds.get(kind, (float("-inf"), 0))
        if now - last < self._every_s:
            self._kinds[kind] = last, since + 1
            return
        self._kinds[kind] = now, 0
        logger.warning("%s%s", text, f" ({since} more since the last line)" if since else "")


class SparseWarnings(logging.Filter):
    """Lets a warning of a logger pass once in `LOG_SECONDS`: uvicorn writes one for each malformed request."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._last: dict[object, float] = {}  # by the text before its values are put in

    @classmethod
    def of(cls, name: str) -> None:
        """Filter this logger; once."""
        filtered = logging.getLogger(name)
        if not any(isinstance(item, cls) for item in filtered.filters):
            filtered.addFilter(cls())

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        now = self._clock()
        if now - self._last.get(record.msg, float("-inf")) < LOG_SECONDS:
            return False
        self._last[record.msg] = now
        return True
