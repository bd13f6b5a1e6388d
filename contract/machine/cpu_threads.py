"""Number of CPU threads that a library computes with."""

from __future__ import annotations

import os

VARIABLE = "OMP_NUM_THREADS"


def cpu_threads(threads: int = 0) -> int:
    """`threads` if it is not 0, else the value of OMP_NUM_THREADS, else 0: the library's choice.

    PyTorch reads the variable itself; ONNX Runtime and OpenVINO, which have their own thread pools, do not.
    """
    if threads:
        return threads
    text = os.environ.get(VARIABLE, "").partition(",")[0]  # a list has one number for each level of nesting
    return int(text) if text.isascii() and text.isdigit() else 0
