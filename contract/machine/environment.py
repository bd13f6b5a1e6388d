"""The environment of a measurement: machine, cores, GPU, versions, command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.machine.gpu import find_gpu

PACKAGES = (
    "nncf", "numpy", "onnx", "onnxruntime-gpu", "onnxruntime", "onnxruntime-ep-openvino", "onnxscript", "openvino",
    "polygraphy", "tensorrt", "tensorrt-rtx-cu13", "torch", "transformers",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """CPU, GPU, system, versions and command, to be stored with each measurement."""
    gpu = find_gpu()
    return {
        "command": " ".join(["python", "-m", _module(), *sys.argv[1:]]),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": None if gpu is None else str(gpu),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _module() -> str:
    main = sys.modules["__main__"]
    return main.__spec__.name.removesuffix(".__main__") if main.__spec__ else Path(sys.argv[0]).name


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    family = f" (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else ""
    return facts.get("model name", "") + family  # cloud providers use one name for several generations


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def peak_memory() -> int:
    """Peak resident memory of this process in bytes (VmHWM; unlike ru_maxrss, a child does not inherit it)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")
