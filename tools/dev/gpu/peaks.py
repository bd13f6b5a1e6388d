"""The step `environment`: what this GPU can do at best, measured, and the driver that runs it."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

from qwen3vl_edge.contract.machine.gpu import find_gpu
from qwen3vl_edge.tools.dev.bench.machine_peak import machine_peaks
from qwen3vl_edge.tools.dev.gpu.context import Context, Report


def report_peaks(context: Context, report: Report) -> None:
    """One row: products and bytes per second, as `machine_peaks` has them, and the machine's parts."""
    peaks = machine_peaks(least_seconds=context.sizes.least_seconds)
    report("peaks", {**_machine(), **peaks})


def _machine() -> dict[str, Any]:
    import torch

    gpu = find_gpu()
    if gpu is None or not torch.cuda.is_available():
        return {"gpu": None}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "memory_bytes": gpu.memory,
        "driver": _driver(),
        "driver_cuda": gpu.driver,
        "torch_cuda": torch.version.cuda,
        "multiprocessors": properties.multi_processor_count,
    }


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None
