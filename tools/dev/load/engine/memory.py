"""Peak memory of some work: of this process, and of torch's allocator on the device."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from qwen3vl_edge.contract.machine import environment

CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # of the resident set, see proc_pid_clear_refs(5)


@contextmanager
def peak_memory(device: torch.device, found: dict[str, int]) -> Iterator[None]:
    """Put the peaks of the block into `found`, bytes.

    `process_peak_bytes` is of the whole process; absent where the system does not tell. `device_peak_bytes` is what
    torch took on the GPU above what was held before, graphs' pools included; absent on a CPU.
    """
    gc.collect()
    held = 0
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        held = torch.cuda.memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
    resettable = _reset()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        found["device_peak_bytes"] = torch.cuda.max_memory_reserved(device) - held
    if resettable:
        found["process_peak_bytes"] = environment.peak_memory()


def _reset() -> bool:
    try:
        CLEAR.write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True
