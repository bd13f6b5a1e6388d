"""How the kit times: medians after a warm-up, the GPU's clock where it counts."""

from __future__ import annotations

import time
from collections.abc import Callable

from qwen3vl_edge.tools.dev.gpu.context import Sizes

LEAST_RUNS, WARM_RUNS = 3, 3


def repeat(work: Callable[[], float], sizes: Sizes) -> list[float]:
    """The seconds that `work` returns, until they are enough for a median: by number, or by time."""
    for _ in range(min(WARM_RUNS, sizes.most_runs)):
        work()
    began, seconds = time.perf_counter(), [work()]
    while len(seconds) < sizes.most_runs and (
        len(seconds) < LEAST_RUNS or time.perf_counter() - began < sizes.least_seconds
    ):
        seconds.append(work())
    return seconds


def wall_seconds(work: Callable[[], object]) -> float:
    """Seconds of the work, whose result must be in host memory when it returns."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def device_seconds(work: Callable[[], object], device: str) -> float:
    """Seconds between two events around the work on torch's stream; on the CPU, of the clock."""
    import torch

    if device == "cpu":
        return wall_seconds(work)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
