"""What this machine can do at best, measured: matrix products per second, and bytes moved per second."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

LARGE_ENOUGH_SECONDS = 0.1  # of one product


@dataclass(frozen=True)
class MachinePeak:
    flops_per_second: float
    bytes_per_second: float


@functools.cache
def machine_peak(dtype: str, threads: int = 0) -> MachinePeak:
    """The best of several large products and copies, on the GPU where there is one, else on the CPU.

    Args:
        dtype: "fp32", "bf16" or "int8" (to int32).
        threads: of the CPU; 0 for all.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        block = torch.empty(64 * 2**20, device=device)
        copy = _best(block.clone, device)
        return MachinePeak(_products_per_second(dtype, device), 2 * block.numel() * block.element_size() / copy)
    finally:
        torch.set_num_threads(before)


def _products_per_second(dtype: str, device: torch.device) -> float:
    # A CPU without bfloat16 multiplies it hundreds of times slower: start small there.
    size = 8192 if device.type == "cuda" else 256
    seconds = _best(_product(dtype, size, device), device)
    while device.type == "cpu" and size < 2048 and seconds < LARGE_ENOUGH_SECONDS:
        size *= 2
        seconds = _best(_product(dtype, size, device), device)
    return 2 * size**3 / seconds


def _product(dtype: str, size: int, device: torch.device) -> Callable[[], Any]:
    if dtype == "int8":
        return _int8_product(size, device)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    one, other = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    return lambda: one @ other


def _int8_product(size: int, device: torch.device) -> Callable[[], Any]:
    if device.type == "cuda":
        a, b = (torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device) for _ in range(2))
        return lambda: torch._int_mm(a, b)
    # On a CPU `_int_mm` is a plain loop where there is no VNNI; the quantized linear has kernels for what there is.
    weight = torch.quantize_per_tensor(torch.randn(size, size), 0.01, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(weight, None)
    values = torch.quantize_per_tensor(torch.randn(size, size), 0.01, 128, torch.quint8)
    return lambda: torch.ops.quantized.linear(values, packed, 0.1, 128)


def _best(work: Callable[[], Any], device: torch.device) -> float:
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
