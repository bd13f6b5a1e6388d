"""What decides which kernels a library picks here: the CPU's model and instruction sets, a GPU's driver."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
# As x86-64 and Arm name them.
_FACTS = ("model name", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")


def processor() -> list[str]:
    """The facts, each as text; what the system does not show is left out."""
    facts = [platform.machine(), *_facts_of(CPUINFO)]
    with suppress(OSError, IndexError):
        facts.append(NVIDIA_DRIVER.read_text(encoding="utf-8").splitlines()[0])
    return facts


def _facts_of(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return [platform.processor()]
    known: dict[str, str] = {}
    for name, _, value in (line.partition(":") for line in lines):
        if name.strip() in _FACTS:
            known.setdefault(name.strip(), value.strip())
    return [f"{name} {value}" for name, value in known.items()]
