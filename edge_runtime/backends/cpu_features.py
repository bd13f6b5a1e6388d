"""What this CPU lacks that would make a quantized set compute something else than it says."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def int8_products_saturate(cpuinfo: Path = CPUINFO) -> bool:
    """Whether ONNX Runtime's int8 products may clip their sums to 16 bits here.

    x86-64 without VNNI multiplies with VPMADDUBSW, which saturates the sum of two products (ONNX Runtime's
    documentation, "Quantize ONNX models", on U8S8 and AVX2). With VNNI, and on Arm, sums are 32 bits wide.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), None)
    return flags is not None and not {"avx512_vnni", "avx_vnni"} & set(flags)
