"""Freed memory goes back to the system; glibc would keep it in the arena of each thread that used it."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable

from qwen3vl_edge.contract.machine.resident_memory import resident_bytes

INTERVAL_SECONDS = 10.0
NOTICED_BYTES = 16 * 2**20  # of growth, whatever it was for: connections are not work


def return_free_memory() -> None:
    """Return what is free (malloc_trim(3)); a no-op with other C libraries."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


async def keep_returning_free_memory(work_done: Callable[[], object]) -> None:
    """Return it after each interval in which something was done, or this process has grown, until cancelled.

    Args:
        work_done: returns something that differs after work.
    """
    before, resident = work_done(), resident_bytes()
    while True:
        await asyncio.sleep(INTERVAL_SECONDS)
        if (now := work_done()) != before or resident_bytes() > resident + NOTICED_BYTES:
            before = now
            await asyncio.to_thread(return_free_memory)
            resident = resident_bytes()
        resident = min(resident, resident_bytes())
