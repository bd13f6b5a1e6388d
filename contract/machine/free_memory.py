"""Freed memory goes back to the system; glibc would keep it in the arena of each thread that used it."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable

INTERVAL_SECONDS = 10.0


def return_free_memory() -> None:
    """Return what is free (malloc_trim(3)); a no-op with other C libraries."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


async def keep_returning_free_memory(work_done: Callable[[], object]) -> None:
    """Return it after each interval in which something was done, until cancelled.

    Args:
        work_done: returns something that differs after work.
    """
    before = work_done()
    while True:
        await asyncio.sleep(INTERVAL_SECONDS)
        if (now := work_done()) != before:
            before = now
            await asyncio.to_thread(return_free_memory)
