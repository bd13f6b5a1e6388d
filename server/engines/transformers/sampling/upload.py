"""Small tables of a batch's rows, from the host to the device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray


def upload(values: Sequence[float] | NDArray[np.int64], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of `values` on the device; for CUDA through pinned memory, as any other copy waits for the device."""
    tensor = torch.tensor(values, dtype=dtype)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
