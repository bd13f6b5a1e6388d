"""Which errors say that there was no memory."""

from __future__ import annotations

import torch

# In plain RuntimeErrors: c10/core/impl/alloc_cpu.cpp, the CUDA runtime outside of torch's allocator, and cuBLAS.
_PHRASES = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error of Python or torch says so; on the CPU torch raises no type of its own for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _PHRASES)
