"""What this machine can do at best, measured: matrix products per second, and bytes moved per second."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import torch

LARGE_ENOUGH_SECONDS = 0.1  # of one product


@dataclass(frozen=True)
class MachinePeak:
    flops_per_second: float
    bytes_per_second: float


@functools.cache
def machine_peak(dtype: str) -> MachinePeak:
    """The best of several large products and copies, on the GPU where there is one, else on the CPU.

    Args:
        dtype: "float32" or "float16"; a CPU multiplies bfloat16 in the latter's place, which it does faster.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # A CPU without bfloat16 multiplies it hundreds of times slower: start small there.
    size = 8192 if device.type == "cuda" else 256
    kind: Any = torch.float32
    if dtype == "float16":
        kind = torch.float16 if device.type == "cuda" else torch.bfloat16
    product = _product(size, kind, device)
    while device.type == "cpu" and size < 2048 and product < LARGE_ENOUGH_SECONDS:
        size *= 2
        product = _product(size, kind, device)
    block = torch.empty(64 * 2**20, device=device)
    copy = _best(block.clone, device)
    return MachinePeak(2 * size**3 / product, 2 * block.numel() * block.element_size() / copy)


def _product(size: int, kind: Any, device: torch.device) -> float:
    a = torch.randn(size, size, device=device).to(kind)
    b = torch.randn(size, size, device=device).to(kind)
    return _best(lambda: a @ b, device)


def _best(work: Any, device: torch.device) -> float:
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
