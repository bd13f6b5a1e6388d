"""Wait for something to become true: never for a length of time, which a busy machine outlasts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 60.0


def until(what: Callable[[], Any], told: Callable[[], object] = lambda: "", within: float = PATIENCE_S) -> None:
    """Return once `what()` is true.

    Args:
        told: called for the message where it never is.
    """
    deadline = time.monotonic() + within
    while not what():
        assert time.monotonic() < deadline, f"not within {within:.0f} s: {told()}"
        time.sleep(0.02)
